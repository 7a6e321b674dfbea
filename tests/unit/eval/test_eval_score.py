"""Evaluation counts by hand."""

import json

import pytest

from r1train.eval.score import Outcome, consensus, interval, make_report, pass_at_k, read_report, write_report
from r1train.log.result import EvalSummary


def outcome(correct, answer="1", *, formatted=True, tokens=10, truncated=False, **fate):
    return Outcome(
        correct=correct,
        formatted=formatted,
        answer=answer,
        response_tokens=tokens,
        truncated=truncated,
        **({"error": None} | fate),
    )


RIGHT, WRONG, SLOW = outcome(True, "7"), outcome(False, "8"), outcome(False, "8", timed_out=True)
LOST = outcome(False, None, formatted=False, tokens=30, truncated=True)
HUNG = outcome(False, "9", tokens=6, error="grader process ended with exit code 7")
PROBLEMS = {"a": [RIGHT] * 4, "b": [RIGHT, RIGHT, WRONG, LOST], "c": [WRONG, SLOW, RIGHT, HUNG], "d": [LOST] * 4}


def test_report_by_hand(tmp_path):
    report = make_report("sums", PROBLEMS)
    assert (report.problems, report.samples, report.samples_per_problem) == (4, 16, 4)
    assert report.pass_at_1 == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    # pass@2: 1; 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2; 0. pass@4: three of four problems have a right one.
    assert report.pass_at_k == pytest.approx({1: 0.4375, 2: (1 + 5 / 6 + 0.5) / 4, 4: 0.75})
    # a: 7 wins. b: 7 wins 2 to 1. c: 8 wins. d: nobody votes.
    assert report.cons_at_k == 0.5
    assert report.format_rate == 11 / 16
    # 7 right, 3 wrong, 1 hung, 5 lost.
    assert report.mean_response_tokens == (7 * 10 + 3 * 10 + 6 + 5 * 30) / 16
    assert report.truncated_share == 5 / 16
    assert (report.grader_errors, report.grader_timeouts) == (1, 1)
    assert report.correct_by_problem == {"a": 4, "b": 2, "c": 1, "d": 0}
    path = write_report(tmp_path / "eval", report)
    assert path == tmp_path / "eval" / "sums.json"
    assert read_report(path) == report
    assert json.loads(path.read_text())["pass_at_k"]["1"] == report.pass_at_1
    assert [p.name for p in path.parent.iterdir()] == ["sums.json"]
    assert report.summary() == EvalSummary(
        pass_at_1=report.pass_at_1,
        ci_low=report.ci_low,
        ci_high=report.ci_high,
        format_rate=11 / 16,
        mean_response_tokens=16.0,
        problems=4,
        samples=16,
    )


@pytest.mark.parametrize(
    ("samples", "correct", "k", "value"),
    [(4, 0, 1, 0.0), (4, 1, 1, 0.25), (4, 1, 4, 1.0), (10, 3, 2, 1 - 21 / 45), (10, 3, 8, 1.0), (64, 1, 16, 0.25)],
)
def test_pass_at_k(samples, correct, k, value):
    assert pass_at_k(samples, correct, k) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_outside_the_samples(k):
    with pytest.raises(ValueError, match="must be between 1 and the 4 samples"):
        pass_at_k(4, 1, k)


def test_interval_of_one_sample_is_wilson():
    # Wilson for 5 of 10: (0.5 + z^2/20 +- z sqrt(0.025 + z^2/400)) / (1 + z^2/10) = 0.2366, 0.7634 (textbook value).
    assert interval([1.0] * 5 + [0.0] * 5, samples_per_problem=1) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    # 0 of 10: z^2 / (10 + z^2) = 0.277533.
    assert interval([0.0] * 10, samples_per_problem=1) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert interval([1.0] * 10, samples_per_problem=1) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_interval_counts_problems_not_samples():
    # Samples of a problem agree: four of each say no more than one.
    assert interval([1.0] * 5 + [0.0] * 5, samples_per_problem=4) == interval(
        [1.0] * 5 + [0.0] * 5, samples_per_problem=1
    )
    # Every problem at one half: the problems do not differ, all 40 samples count: Wilson for 20 of 40.
    assert interval([0.5] * 10, samples_per_problem=4) == pytest.approx((0.351996, 0.648004), abs=1e-6)


def test_consensus_of_a_tie_does_not_depend_on_order():
    assert consensus([RIGHT, WRONG]) == consensus([WRONG, RIGHT]) == 0.5
    assert consensus([RIGHT, WRONG, LOST, LOST, LOST, WRONG]) == 0.0
    assert consensus([LOST]) == 0.0


@pytest.mark.parametrize("problems", [{}, {"a": []}, {"a": [RIGHT], "b": [RIGHT, WRONG]}])
def test_uneven_samples_are_refused(problems):
    with pytest.raises(ValueError, match="they must be equal and at least 1"):
        make_report("sums", problems)
