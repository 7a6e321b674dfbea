"""Group advantages against the vectors of the recipe (facts/recipe.md 4.1) and by hand."""

import pytest
import torch

from r1train.rl.advantage import group_advantages


@pytest.mark.parametrize(
    ("correct", "std", "high", "low"),
    [
        (1, "population", 3.87298, -0.258199),
        (1, "sample", 3.75, -0.25),
        (4, "population", 1.732051, -0.57735),
        (4, "sample", 1.677051, -0.559017),
        (8, "population", 1.0, -1.0),
        (8, "sample", 0.968246, -0.968246),
        (1, "none", 0.9375, -0.0625),
        (4, "none", 0.75, -0.25),
    ],
)
def test_recipe_vectors(correct, std, high, low):
    values = torch.tensor([1.0] * correct + [0.0] * (16 - correct))
    result = group_advantages(values, ["g"] * 16, std=std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:correct], torch.full((correct,), high), atol=5e-6, rtol=0)
    torch.testing.assert_close(result[correct:], torch.full((16 - correct,), low), atol=5e-6, rtol=0)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_equal_rewards_give_exactly_zero(std):
    # The mean of three 0.1 is not 0.1 in floating point; std would be tiny and the advantage +-1.
    values = torch.tensor([0.1, 0.1, 0.1, 5.0], dtype=torch.float64)
    assert group_advantages(values, ["a", "a", "a", "alone"], std=std).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_interleaved_groups_of_different_sizes():
    # a = (0, 2): -1, 1. b = (1, 2, 3): std sqrt(2/3) -> -sqrt(1.5), 0, sqrt(1.5). c = (7): 0.
    values = torch.tensor([0.0, 1.0, 2.0, 7.0, 2.0, 3.0])
    result = group_advantages(values, ["a", "b", "b", "c", "a", "b"], std="population")
    torch.testing.assert_close(result, torch.tensor([-1.0, -(1.5**0.5), 0.0, 0.0, 1.0, 1.5**0.5]))


def test_ungraded_samples_enter_nothing():
    values = torch.tensor([0.0, float("nan"), 2.0])
    valid = torch.tensor([True, False, True])
    assert group_advantages(values, ["a"] * 3, std="population", valid=valid).tolist() == [-1.0, 0.0, 1.0]


def test_not_finite_rewards_and_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        group_advantages(torch.tensor([0.0, float("nan")]), ["a", "a"], std="none")
    with pytest.raises(ValueError, match="group_ids 3"):
        group_advantages(torch.tensor([0.0, 1.0]), ["a", "a", "b"], std="none")
