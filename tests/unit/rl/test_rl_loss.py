"""The loss per token against the vectors of the recipe, by hand, and its gradients."""

import math
from dataclasses import replace

import pytest
import torch

from r1train.config.schema_rl import CorrectionConfig, RlConfig
from r1train.rl.kl import KL_ESTIMATORS
from r1train.rl.loss import SampleTokens, TokenLogprobs, token_loss

GRPO = RlConfig(
    name="test",
    policy_loss="clip",
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.0,
    kl_estimator="k3",
    advantage_std="population",
    aggregation="seq-mean-token-mean",
)


def loss_of(ratios, advantages, cfg=GRPO, *, x=None, rho=None, segments=None):
    """Token loss at given ratios pi_theta / pi_old, x = pi_ref / pi_theta, rho = pi_old / mu; with the policy leaf."""
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    policy = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    result = token_loss(
        TokenLogprobs(
            policy=policy,
            old=old,
            engine=old if rho is None else old - torch.tensor(rho, dtype=torch.float64).log(),
            reference=None if x is None else policy.detach() + torch.tensor(x, dtype=torch.float64).log(),
        ),
        SampleTokens(
            advantages=torch.tensor(advantages, dtype=torch.float64),
            mask=torch.ones(len(ratios)),
            segments=torch.tensor(segments or [0] * len(ratios)),
        ),
        cfg,
    )
    return result, policy


def gradient(result, policy):
    return torch.autograd.grad(result.loss.sum(), policy)[0].tolist()


@pytest.mark.parametrize(("x", "value"), [(0.5, 0.193147), (1.0, 0.0), (2.0, 0.306853), (11.0, 7.602105)])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_kl_vectors_and_gradients(x, value, ratio):
    """Values and gradients by ln pi_theta; the unbiased one's is r ln(pi_theta / pi_ref)."""
    expected = {
        "k1": (-math.log(x), 1.0),
        "k2": (math.log(x) ** 2 / 2, -math.log(x)),
        "k3": (value, 1.0 - x),
        "unbiased": (ratio * value, -ratio * math.log(x)),
    }
    for name, (amount, slope) in expected.items():
        cfg = replace(GRPO, kl_coef=0.5, kl_estimator=name)
        result, policy = loss_of([ratio], [0.0], cfg, x=[x])
        assert result.sums["kl"].item() == pytest.approx(amount, abs=1e-6)
        assert result.loss.item() == pytest.approx(0.5 * amount, abs=1e-6)
        assert gradient(result, policy) == pytest.approx([0.5 * slope], abs=1e-12)


def test_unbiased_kl_has_the_gradient_of_the_kl():
    """Expected gradient over samples of pi_old, summed exactly over a small vocabulary, against autograd of the KL."""
    generator = torch.Generator().manual_seed(3)
    logits, old, reference = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    log_pi, log_old, log_ref = (values.log_softmax(0) for values in (logits, old, reference))
    exact = torch.autograd.grad((log_pi.exp() * (log_pi - log_ref)).sum(), logits, retain_graph=True)[0]

    def expected_gradient(name, sampled_from):
        values = KL_ESTIMATORS[name](log_ref - log_pi, log_pi - sampled_from)
        return torch.autograd.grad((sampled_from.detach().exp() * values).sum(), logits, retain_graph=True)[0]

    torch.testing.assert_close(expected_gradient("unbiased", log_old), exact, atol=1e-12, rtol=0)
    # On samples of pi_theta itself k2 is right, k1 pulls nowhere, and k3's gradient is another one.
    torch.testing.assert_close(expected_gradient("k2", log_pi.detach()), exact, atol=1e-12, rtol=0)
    assert expected_gradient("k1", log_pi.detach()).abs().max() < 1e-12
    assert (expected_gradient("k3", log_pi.detach()) - exact).abs().max() > 0.01


def test_clip_by_hand():
    # eps 0.2: A > 0 is cut above 1.2, A < 0 below 0.8; the other sides stay as they are (min of the two products).
    ratios = [1.0, 1.1, 1.5, 0.5, 1.0, 1.1, 1.5, 0.5]
    advantages = [2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0]
    result, policy = loss_of(ratios, advantages)
    expected = [-2.0, -2.2, -2.4, -1.0, 2.0, 2.2, 3.0, 1.6]
    assert result.loss.tolist() == pytest.approx(expected, abs=1e-12)
    # d(-r A)/d logp = -r A where not clipped, 0 where clipped.
    assert gradient(result, policy) == pytest.approx([-2.0, -2.2, 0.0, -1.0, 2.0, 2.2, 3.0, 0.0], abs=1e-12)
    assert {name: value.item() for name, value in result.sums.items()} == pytest.approx(
        {
            "tokens": 8.0,
            "clipped": 2.0,
            "clipped_low": 1.0,
            "clipped_high": 1.0,
            "kl": 0.0,
            "ratio": 8.2,
            "correction": 8.0,
            "left_out": 0.0,
        }
    )
    assert result.ratio.tolist() == pytest.approx(ratios)


def test_clip_higher_is_asymmetric():
    result, _ = loss_of([1.25, 1.4, 0.7], [1.0, 1.0, -1.0], replace(GRPO, clip_high=0.28))
    assert result.loss.tolist() == pytest.approx([-1.25, -1.28, 0.8], abs=1e-12)


def test_r1_epsilon_ten_is_minus_nine_to_eleven():
    ratios = [1e-6, 10.9, 12.0, 1e-6, 12.0]
    result, policy = loss_of(ratios, [1.0, 1.0, 1.0, -1.0, -1.0], replace(GRPO, clip_low=10.0, clip_high=10.0))
    assert result.loss.tolist() == pytest.approx([-1e-6, -10.9, -11.0, 1e-6, 12.0], abs=1e-9)
    slopes = gradient(result, policy)
    assert slopes[2:] == pytest.approx([0.0, 1e-6, 12.0])
    assert (result.sums["clipped_low"].item(), result.sums["clipped_high"].item()) == (0.0, 1.0)


def test_kl_is_added_with_its_coefficient():
    result, policy = loss_of([1.0, 1.0], [1.0, 0.0], replace(GRPO, kl_coef=0.5), x=[2.0, 11.0])
    assert result.loss.tolist() == pytest.approx([-1.0 + 0.5 * 0.306853, 0.5 * 7.602105], abs=5e-7)
    assert result.sums["kl"].item() == pytest.approx(0.306853 + 7.602105, abs=1e-6)
    assert gradient(result, policy) == pytest.approx([-1.0 + 0.5 * (1 - 2.0), 0.5 * (1 - 11.0)], abs=1e-12)


def test_gspo_has_one_ratio_per_sequence():
    # Sequence 0: s = sqrt(1.2 * 0.9) = 1.03923; sequence 1: s = 1.1. Bounds 0.95 and 1.05.
    cfg = replace(GRPO, policy_loss="gspo", clip_low=0.05, clip_high=0.05)
    result, policy = loss_of([1.2, 0.9, 1.1], [1.0, 1.0, 2.0], cfg, segments=[0, 0, 1])
    assert result.loss.tolist() == pytest.approx([-1.0392305, -1.0392305, -2.1], abs=1e-7)
    # d s / d logp = s / 2 in sequence 0, and both tokens carry s; sequence 1 is clipped.
    assert gradient(result, policy) == pytest.approx([-1.0392305, -1.0392305, 0.0], abs=1e-7)
    assert result.sums["clipped_high"].item() == 1.0
    assert loss_of([1.2, 0.9, 1.1], [-1.0, -1.0, -2.0], cfg, segments=[0, 0, 1])[0].sums["clipped"].item() == 0.0


def test_gspo_token_equals_gspo_for_one_advantage_per_sequence():
    ratios, segments = [1.2, 0.9, 1.1, 0.6, 1.0], [0, 0, 1, 1, 1]
    one, two = (
        loss_of(
            ratios,
            [1.0, 1.0, -2.0, -2.0, -2.0],
            replace(GRPO, policy_loss=name, clip_low=0.3, clip_high=0.3),
            segments=segments,
        )
        for name in ("gspo", "gspo-token")
    )
    assert two[0].loss.tolist() == pytest.approx(one[0].loss.tolist(), abs=1e-12)
    assert gradient(*two) == pytest.approx(gradient(*one), abs=1e-12)
    # With advantages per token only the token variant tells them apart: s = sqrt(1.08) for both tokens.
    cfg = replace(GRPO, policy_loss="gspo-token")
    assert gradient(*loss_of([1.2, 0.9], [1.0, 0.0], cfg)) == pytest.approx([-(1.08**0.5), 0.0], abs=1e-12)


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    cfg = replace(GRPO, policy_loss="cispo", clip_low=1.0, clip_high=4.0)
    ratios, advantages = [1.0, 8.0, 0.01, 8.0], [1.0, 1.0, -2.0, -1.0]
    result, policy = loss_of(ratios, advantages, cfg)
    weights = [1.0, 5.0, 0.01, 5.0]
    expected = [-w * a * (math.log(r) - 1.5) for w, a, r in zip(weights, advantages, ratios, strict=True)]
    assert result.loss.tolist() == pytest.approx(expected, abs=1e-12)
    slopes = [-w * a for w, a in zip(weights, advantages, strict=True)]
    assert gradient(result, policy) == pytest.approx(slopes, abs=1e-12)
    assert (result.sums["clipped_low"].item(), result.sums["clipped_high"].item()) == (0.0, 2.0)


def test_corrections_weigh_the_policy_loss_and_not_the_kl():
    cfg = replace(GRPO, kl_coef=1.0, correction=CorrectionConfig(weight="tis", weight_high=2.0))
    result, policy = loss_of([1.0] * 3, [1.0] * 3, cfg, x=[2.0] * 3, rho=[0.5, 1.5, 7.0])
    kl = 2.0 - math.log(2.0) - 1.0
    assert result.loss.tolist() == pytest.approx([-0.5 + kl, -1.5 + kl, -2.0 + kl], abs=1e-12)
    assert gradient(result, policy) == pytest.approx([-0.5 - 1.0, -1.5 - 1.0, -2.0 - 1.0], abs=1e-12)
    assert result.sums["correction"].item() == pytest.approx(4.0)


def test_masked_tokens_count_nothing_whatever_they_hold():
    for policy_loss in ("clip", "gspo", "gspo-token", "cispo"):
        policy = torch.tensor([-1.0, float("-inf"), float("nan")], requires_grad=True)
        result = token_loss(
            TokenLogprobs(
                policy=policy,
                old=torch.tensor([-1.0, 0.0, 0.0]),
                engine=torch.tensor([-1.0, float("nan"), 0.0]),
                reference=torch.tensor([-1.0, 0.0, 1e9]),
            ),
            SampleTokens(
                advantages=torch.full((3,), 3.0), mask=torch.tensor([1, 0, 0]), segments=torch.tensor([0, 0, 1])
            ),
            replace(GRPO, kl_coef=0.1, policy_loss=policy_loss, correction=CorrectionConfig(off_policy_delta=0.1)),
        )
        # CISPO's value is A ln pi, here 3 * -1; the others' r A with r = 1. The gradients agree.
        assert result.loss.tolist() == [3.0 if policy_loss == "cispo" else -3.0, 0.0, 0.0]
        result.loss.sum().backward()
        assert policy.grad.tolist() == [-3.0, 0.0, 0.0]
        assert result.sums["tokens"].item() == 1.0 and result.sums["ratio"].item() == 1.0


def test_huge_ratio_has_a_finite_gradient():
    for kl_estimator in KL_ESTIMATORS:
        policy = torch.tensor([0.0, 0.0], requires_grad=True)
        far = torch.tensor([-200.0, -200.0])
        result = token_loss(
            TokenLogprobs(policy=policy, old=far, engine=far, reference=far),
            SampleTokens(advantages=torch.tensor([1.0, -1.0]), mask=torch.ones(2), segments=torch.zeros(2).long()),
            replace(GRPO, kl_estimator=kl_estimator),
        )
        assert result.loss[0].item() == pytest.approx(-1.2)
        assert result.loss[1].item() == pytest.approx(math.exp(20.0), rel=1e-6)
        result.loss.sum().backward()
        assert policy.grad.tolist() == [0.0, 0.0]


def test_kl_without_reference_is_refused():
    with pytest.raises(ValueError, match="needs reference"):
        loss_of([1.0], [1.0], replace(GRPO, kl_coef=0.001))
