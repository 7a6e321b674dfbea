"""Limits of hard stops and of corrections that could never matter, or would change every token."""

import pytest

GRPO = ("stage=grpo", "stage.init_from=x")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rl.stop_if.truncated_share_above=2", "never above 1"),
        ("rl.stop_if.flipped_experts_share_above=1", "never above 1"),
        ("rl.stop_if.truncated_share_above=-0.5", "never below 0"),
    ],
)
def test_a_share_lies_between_0_and_1(problems, override, says):
    assert says in problems(*GRPO, override)[override.partition("=")[0]].what
    assert problems(*GRPO, "rl.stop_if.truncated_share_above=0.9", "rl.stop_if.response_tokens_above=20000") == {}


def test_a_bound_lets_an_agreeing_engine_pass(problems):
    tis = (*GRPO, "rl.correction.weight=tis")
    assert "1 or more" in problems(*tis, "rl.correction.weight_high=0.5")["rl.correction.weight_high"].fix
    assert problems(*tis, "rl.correction.weight_high=1.0") == {}
    mask = (*GRPO, "rl.correction.sequence_mask=geometric", "rl.correction.mask_low=0.5")
    assert "every token" in problems(*mask, "rl.correction.mask_high=0.9")["rl.correction.mask_high"].what


def test_a_balance_loss_is_not_negative(problems):
    assert "below 0" in problems(*GRPO, "rl.sequence_loss_coef=-1")["rl.sequence_loss_coef"].what
    assert problems(*GRPO, "rl.sequence_loss_coef=1e-4") == {}
