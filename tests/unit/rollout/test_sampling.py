"""Choosing tokens: the top-p set by hand, frequencies, determinism, and the edges of the noise."""

import numpy as np
import pytest
import torch

from r1train.rollout.sampling import BLOCK, choose_tokens, sample_noise

PROBABILITIES = [0.08, 0.5, 0.12, 0.3]


def draw(noise, *, temperature: float = 1.0, top_p: float = 1.0, probabilities=PROBABILITIES):
    """Tokens and logprobs of one distribution for every noise value."""
    noise = torch.as_tensor(noise, dtype=torch.float32)
    logits = torch.tensor(probabilities).log().expand(len(noise), -1)
    return choose_tokens(logits, noise, temperature=temperature, top_p=top_p)


def test_inverse_cdf_by_hand():
    """Cumulative masses 0.08, 0.58, 0.70, 1.00 in token order."""
    tokens, logprobs = draw([0.0, 0.0799, 0.0801, 0.5799, 0.5801, 0.6999, 0.7001, 0.9999])
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor(PROBABILITIES)[tokens])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.4, {1}), (0.49, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.81, {1, 3, 2}), (0.93, {0, 1, 2, 3}), (1e-6, {1})],
)
def test_top_p_set_by_hand(top_p, kept):
    """Most likely first: 0.5, 0.8, 0.92, 1.0. The set is the smallest whose mass reaches top_p."""
    tokens, logprobs = draw(np.linspace(0, 0.99999, 2001), top_p=top_p)
    assert set(tokens.tolist()) == kept
    # The logprob is that of the whole distribution, which the trainer computes, not of the kept set.
    torch.testing.assert_close(logprobs.exp(), torch.tensor(PROBABILITIES)[tokens])


def test_kept_tokens_are_renormalised():
    """top_p 0.79 keeps 0.5 and 0.3: token 1 for 0.5 / 0.8 = 62.5 % of the noise."""
    tokens, _ = draw([0.624, 0.626], top_p=0.79)
    assert tokens.tolist() == [1, 3]


def test_temperature_by_hand():
    """Temperature 2 takes square roots: 0.2828, 0.7071, 0.3464, 0.5477 over their sum 1.8841."""
    tokens, logprobs = draw([0.0, 0.2, 0.6, 0.99], temperature=2.0)
    assert tokens.tolist() == [0, 1, 2, 3]
    expected = torch.tensor([0.282843, 0.707107, 0.346410, 0.547723]) / 1.884082
    torch.testing.assert_close(logprobs.exp(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_p", (1.0, 0.93, 0.81))
def test_frequencies_of_20000_draws(top_p):
    """Within four standard deviations of the renormalised probability of every token."""
    noise = sample_noise(1, "frequencies", prompt_id="p", index=0, count=20_000)
    tokens, _ = draw(noise, top_p=top_p)
    kept = [p if top_p > 0.9 or p > 0.1 else 0.0 for p in PROBABILITIES]
    for token, count in enumerate(tokens.bincount(minlength=4).tolist()):
        share = kept[token] / sum(kept)
        assert abs(count / 20_000 - share) <= 4 * (share * (1 - share) / 20_000) ** 0.5, token


@pytest.mark.parametrize("top_p", (1.0, 0.95))
def test_noise_close_to_one_takes_a_token_with_mass(top_p):
    """float32's largest number below 1; the last tokens of a real vocabulary may have no mass at all."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 1000, generator=generator) * 5
    logits[:, 700:] = -200.0  # exp underflows to 0
    tokens, logprobs = choose_tokens(logits, torch.full((50,), float(largest)), temperature=1.0, top_p=top_p)
    assert (tokens < 700).all() and logprobs.isfinite().all()
    certain, logprob = draw([0.0, float(largest)], probabilities=[0.0, 1.0, 0.0], top_p=top_p)
    assert certain.tolist() == [1, 1] and logprob.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("top_p", (1.0, 0.4))
def test_temperature_0_is_greedy_whatever_the_noise(top_p):
    """The most likely token, with its logprob in the distribution as it is: ln 0.5."""
    tokens, logprobs = draw([0.0, 0.3, 0.7, 0.9999], temperature=0.0, top_p=top_p)
    assert tokens.tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(logprobs, torch.full((4,), -0.693147))
    other, logprob = draw([0.5], temperature=0.0, probabilities=[0.2, 0.1, 0.7])
    assert other.tolist() == [2]
    torch.testing.assert_close(logprob, torch.tensor([-0.356675]))  # ln 0.7


def test_a_row_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(8, 50, generator=generator), torch.rand(8, generator=generator)
    together = choose_tokens(logits, noise, temperature=0.7, top_p=0.9)
    for row in range(8):
        alone = choose_tokens(logits[row : row + 1], noise[row : row + 1], temperature=0.7, top_p=0.9)
        assert alone[0].item() == together[0][row].item()
        assert alone[1].item() == together[1][row].item()


def one_running_sum(logits, noise, *, temperature: float, top_p: float):
    """The same draw with one running sum in double over the whole vocabulary."""
    logprobs = torch.log_softmax(logits.double() / temperature, dim=-1)
    ordered, tokens = logprobs.exp().sort(dim=-1, descending=True, stable=True)
    if top_p == 1.0:
        ordered, tokens = logprobs.exp(), torch.arange(logits.shape[-1]).expand_as(logits)
    mass = ordered.cumsum(-1)
    ordered = ordered.masked_fill(mass - ordered >= top_p, 0.0) if top_p < 1.0 else ordered
    mass = ordered.cumsum(-1)
    place = (mass <= noise.double()[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
    chosen = tokens.gather(1, place.clamp(max=logits.shape[-1] - 1))
    return chosen[:, 0], logprobs.gather(1, chosen)[:, 0]


@pytest.mark.parametrize("vocabulary", (BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 100))
@pytest.mark.parametrize(("temperature", "top_p"), ((1.0, 1.0), (0.7, 1.0), (1.3, 0.9)))
def test_two_levels_draw_what_one_running_sum_draws(vocabulary, temperature, top_p):
    """Probabilities in float32 may part the two where noise lies within 1e-6 of a boundary: 1 of 4000 may differ."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(4000, vocabulary, generator=generator) * 3
    noise = torch.rand(4000, generator=generator)
    tokens, logprobs = choose_tokens(logits, noise, temperature=temperature, top_p=top_p)
    expected, of_expected = one_running_sum(logits, noise, temperature=temperature, top_p=top_p)
    same = tokens == expected
    assert (~same).sum() <= 1
    torch.testing.assert_close(logprobs[same], of_expected[same].float(), atol=2e-6, rtol=2e-6)


def test_a_block_without_mass_is_never_drawn_from():
    """Mass in the second block of four only, at both of its ends, and noise at its edges."""
    logits = torch.full((1, 4 * BLOCK), -200.0)
    logits[0, [BLOCK, 2 * BLOCK - 1]] = 1.0
    noise = torch.tensor([0.0, 0.49999, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
    tokens, logprobs = choose_tokens(logits.expand(4, -1), noise, temperature=1.0, top_p=1.0)
    assert tokens.tolist() == [BLOCK, BLOCK, 2 * BLOCK - 1, 2 * BLOCK - 1]
    torch.testing.assert_close(logprobs, torch.full((4,), -0.693147))


def test_noise_belongs_to_the_sample():
    """The same numbers for the same name, prompt and index, whatever is drawn before; a longer budget adds to them."""
    first = sample_noise(3, "grpo/12", prompt_id="a", index=2, count=8)
    sample_noise(3, "grpo/12", prompt_id="b", index=0, count=100)
    assert first.dtype == np.float32 and (first >= 0).all() and (first < 1).all()
    assert np.array_equal(sample_noise(3, "grpo/12", prompt_id="a", index=2, count=8), first)
    assert np.array_equal(sample_noise(3, "grpo/12", prompt_id="a", index=2, count=20)[:8], first)
    others = [(4, "grpo/12", "a", 2), (3, "grpo/13", "a", 2), (3, "grpo/12", "b", 2), (3, "grpo/12", "a", 3)]
    for seed, name, prompt_id, index in others:
        assert not np.array_equal(sample_noise(seed, name, prompt_id=prompt_id, index=index, count=8), first)
