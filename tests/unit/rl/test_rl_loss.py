"""k3 and the clipped ratio against the vectors of the recipe and by hand."""

import math

import pytest
import torch

from r1train.rl.loss import TokenLogprobs, grpo_token_loss, k3


def loss_of(ratios, advantages, *, clip_low, clip_high, kl_coef=0.0, x=None):
    """Token loss at given ratios pi_theta / pi_old and x = pi_ref / pi_theta; returns it with the policy leaf."""
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    policy = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    reference = None if x is None else policy.detach() + torch.tensor(x, dtype=torch.float64).log()
    result = grpo_token_loss(
        TokenLogprobs(policy=policy, old=old, reference=reference),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        mask=torch.ones(len(ratios)),
        clip_low=clip_low,
        clip_high=clip_high,
        kl_coef=kl_coef,
    )
    return result, policy


@pytest.mark.parametrize(("x", "value"), [(0.5, 0.193147), (1.0, 0.0), (2.0, 0.306853), (11.0, 7.602105)])
def test_k3_vectors_and_gradient(x, value):
    logprob = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    result = k3(logprob, logprob.detach() + math.log(x))
    assert result.item() == pytest.approx(value, abs=5e-7)
    result.sum().backward()
    assert logprob.grad.item() == pytest.approx(1.0 - x, abs=1e-12)


def test_clip_by_hand():
    # eps 0.2: A > 0 is cut above 1.2, A < 0 below 0.8; the other sides stay as they are (min of the two products).
    ratios = [1.0, 1.1, 1.5, 0.5, 1.0, 1.1, 1.5, 0.5]
    advantages = [2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0]
    result, policy = loss_of(ratios, advantages, clip_low=0.2, clip_high=0.2)
    expected = [-2.0, -2.2, -2.4, -1.0, 2.0, 2.2, 3.0, 1.6]
    assert result.loss.tolist() == pytest.approx(expected, abs=1e-12)
    result.loss.sum().backward()
    # d(-r A)/d logp = -r A where not clipped, 0 where clipped.
    gradient = [-2.0, -2.2, 0.0, -1.0, 2.0, 2.2, 3.0, 0.0]
    assert policy.grad.tolist() == pytest.approx(gradient, abs=1e-12)
    assert {name: value.item() for name, value in result.sums.items()} == pytest.approx(
        {"tokens": 8.0, "clipped": 2.0, "kl": 0.0, "ratio": 8.2}
    )
    assert result.ratio_max.item() == pytest.approx(1.5)


def test_clip_higher_is_asymmetric():
    result, _ = loss_of([1.25, 1.4, 0.7], [1.0, 1.0, -1.0], clip_low=0.2, clip_high=0.28)
    assert result.loss.tolist() == pytest.approx([-1.25, -1.28, 0.8], abs=1e-12)


def test_r1_epsilon_ten_is_minus_nine_to_eleven():
    ratios = [1e-6, 10.9, 12.0, 1e-6, 12.0]
    result, policy = loss_of(ratios, [1.0, 1.0, 1.0, -1.0, -1.0], clip_low=10.0, clip_high=10.0)
    assert result.loss.tolist() == pytest.approx([-1e-6, -10.9, -11.0, 1e-6, 12.0], abs=1e-9)
    result.loss.sum().backward()
    assert policy.grad[2].item() == 0.0
    assert policy.grad[3].item() == pytest.approx(1e-6)
    assert policy.grad[4].item() == pytest.approx(12.0)
    assert result.sums["clipped"].item() == 1.0


def test_kl_is_added_with_its_coefficient():
    result, policy = loss_of([1.0, 1.0], [1.0, 0.0], clip_low=0.2, clip_high=0.2, kl_coef=0.5, x=[2.0, 11.0])
    assert result.loss.tolist() == pytest.approx([-1.0 + 0.5 * 0.306853, 0.5 * 7.602105], abs=5e-7)
    assert result.sums["kl"].item() == pytest.approx(0.306853 + 7.602105, abs=1e-6)
    result.loss.sum().backward()
    assert policy.grad.tolist() == pytest.approx([-1.0 + 0.5 * (1 - 2.0), 0.5 * (1 - 11.0)], abs=1e-12)


def test_masked_tokens_count_nothing_whatever_they_hold():
    policy = torch.tensor([-1.0, float("-inf"), float("nan")], requires_grad=True)
    result = grpo_token_loss(
        TokenLogprobs(policy=policy, old=torch.tensor([-1.0, 0.0, 0.0]), reference=torch.tensor([-1.0, 0.0, 1e9])),
        advantages=torch.tensor([3.0, 3.0, 3.0]),
        mask=torch.tensor([1, 0, 0]),
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.1,
    )
    assert result.loss.tolist() == [-3.0, 0.0, 0.0]
    result.loss.sum().backward()
    assert policy.grad.tolist() == [-3.0, 0.0, 0.0]
    assert result.sums["tokens"].item() == 1.0 and result.sums["ratio"].item() == 1.0


def test_huge_ratio_has_a_finite_gradient():
    policy = torch.tensor([0.0, 0.0], requires_grad=True)
    old = torch.tensor([-200.0, -200.0])
    result = grpo_token_loss(
        TokenLogprobs(policy=policy, old=old, reference=None),
        advantages=torch.tensor([1.0, -1.0]),
        mask=torch.ones(2),
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.0,
    )
    assert result.loss[0].item() == pytest.approx(-1.2)
    assert result.loss[1].item() == pytest.approx(math.exp(20.0), rel=1e-6)
    result.loss.sum().backward()
    assert policy.grad.tolist() == [0.0, 0.0]


def test_kl_without_reference_is_refused():
    with pytest.raises(ValueError, match="needs reference"):
        loss_of([1.0], [1.0], clip_low=0.2, clip_high=0.2, kl_coef=0.001)
