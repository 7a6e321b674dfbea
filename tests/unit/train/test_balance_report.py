"""Load statistics of the experts against hand arithmetic."""

import pytest

from r1train.train.balance import BalanceReport


def test_max_violation_is_the_largest_load_over_the_mean_minus_one():
    """arXiv 2408.15664 eq. 4. Loads 6, 2, 0, 0: mean 2, largest 6, so 6 / 2 - 1 = 2."""
    report = BalanceReport(((6, 2, 0, 0), (2, 2, 2, 2), (1, 3, 3, 1)))
    assert report.max_violation() == [2.0, 0.0, 0.5]
    assert report.dead_experts() == 2


def test_gauges_are_numbers_and_per_layer_lists():
    gauges = BalanceReport(((6, 2, 0, 0), (1, 3, 3, 1))).gauges()
    assert gauges == {
        "balance/max_violation": 2.0,
        "balance/mean_violation": pytest.approx(1.25),
        "balance/dead_experts": 2.0,
        "balance/max_violation_per_layer": [2.0, 0.5],
        "balance/expert_load": [[3.0, 1.0, 0.0, 0.0], [0.5, 1.5, 1.5, 0.5]],
    }


def test_sequence_loss_is_a_mean_over_the_layers_that_ran():
    """2.2 and 1.4 make 1.8; MTP's row, which nothing came to, does not count. None: not trained on, not shown."""
    report = BalanceReport(((6, 2, 0, 0), (1, 3, 3, 1), (0, 0, 0, 0)), 3.6)
    assert report.gauges()["balance/sequence_loss"] == pytest.approx(1.8)
    assert "balance/sequence_loss" not in BalanceReport(report.load).gauges()


def test_a_layer_that_did_not_run_is_in_no_number():
    """MTP's row in RL: without the mend -1 would be its violation, and its experts dead."""
    report = BalanceReport(((6, 2, 0, 0), (1, 3, 3, 1), (0, 0, 0, 0)))
    assert report.gauges() == BalanceReport(((6, 2, 0, 0), (1, 3, 3, 1))).gauges()
    assert (report.max_violation(), report.dead_experts()) == ([2.0, 0.5], 2)
    assert BalanceReport(((0, 0),)).gauges() == {}
