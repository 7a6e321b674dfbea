"""Importance weights and masks for engine/trainer mismatch: values by hand."""

import math

import pytest
import torch

from r1train.config.schema_rl import CorrectionConfig
from r1train.rl.correction import correction, off_policy_mask
from r1train.rl.segments import segment_ids, segment_mean, segment_sum

# Sequence 0: rho 2, 0.25 (product 0.5, geometric mean 0.7071); sequence 1: 3, 0.1, 8, 1 (2.4, 1.2447); then padding.
RHO = torch.tensor([2.0, 0.25, 3.0, 0.1, 8.0, 1.0, 1.0], dtype=torch.float64)
KEEP = torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool()
SEGMENTS = torch.tensor([0, 0, 1, 1, 1, 1, 2])


def test_segments_of_a_packed_row():
    segments = segment_ids(torch.tensor([0, 2, 6, 7], dtype=torch.int32))
    assert segments.tolist() == SEGMENTS.tolist()
    assert segment_sum(RHO, segments).tolist() == pytest.approx([2.25, 2.25, 12.1, 12.1, 12.1, 12.1, 1.0])
    some = torch.tensor([1, 0, 0, 1, 1, 0, 0]).bool()
    assert segment_mean(RHO, some, segments).tolist() == pytest.approx([2.0, 2.0, 4.05, 4.05, 4.05, 4.05, 0.0])
    assert segment_sum(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [1.0] * 6),
        ({"weight": "tis", "weight_high": 2.0}, [2.0, 0.25, 2.0, 0.1, 2.0, 1.0]),
        ({"weight": "sequence-tis", "weight_high": 2.0}, [0.5, 0.5, 2.0, 2.0, 2.0, 2.0]),
        ({"weight": "icepop", "weight_low": 0.5, "weight_high": 5.0}, [2.0, 0.0, 3.0, 0.0, 0.0, 1.0]),
        ({"sequence_mask": "ratio", "mask_low": 0.6, "mask_high": 2.5}, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        ({"sequence_mask": "geometric", "mask_low": 0.7, "mask_high": 1.2}, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        (
            {"weight": "tis", "weight_high": 2.0, "sequence_mask": "geometric", "mask_low": 0.8, "mask_high": 1.3},
            [0.0, 0.0, 2.0, 0.1, 2.0, 1.0],
        ),
    ],
)
def test_by_hand(rules, expected):
    log_rho = RHO.log().requires_grad_()
    factor = correction(log_rho, KEEP, SEGMENTS, CorrectionConfig(**rules))
    assert factor[:6].tolist() == pytest.approx(expected, abs=1e-12)
    assert not factor.requires_grad


def test_icepop_keeps_its_bounds():
    log_rho = torch.tensor([0.5, 5.0, 0.5 - 1e-6, 5.0 + 1e-6], dtype=torch.float64).log()
    rules = CorrectionConfig(weight="icepop", weight_low=0.5 - 1e-9, weight_high=5.0 + 1e-9)
    assert correction(log_rho, torch.ones(4).bool(), torch.zeros(4).long(), rules).tolist() == pytest.approx(
        [0.5, 5, 0, 0]
    )


def test_long_sequence_has_a_finite_product():
    log_rho = torch.full((4000,), 1.0)
    rules = CorrectionConfig(weight="sequence-tis", weight_high=1e30)
    factor = correction(log_rho, torch.ones(4000).bool(), torch.zeros(4000).long(), rules)
    assert factor[0].item() == pytest.approx(math.exp(20.0), rel=1e-6)


def test_off_policy_mask_drops_bad_samples_that_drifted():
    # Mean ln(mu / pi_theta): sequence 0 0.3, sequence 1 0.3, sequence 2 0.05; advantages -1, +1, -1; delta 0.1.
    drift = torch.tensor([0.1, 0.5, 0.3, 0.05])
    factor = off_policy_mask(
        drift, torch.tensor([-1.0, -1.0, 1.0, -1.0]), torch.ones(4).bool(), torch.tensor([0, 0, 1, 2]), 0.1
    )
    assert factor.tolist() == [0.0, 0.0, 1.0, 1.0]
