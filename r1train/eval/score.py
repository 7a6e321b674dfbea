"""Counts of an evaluation: pass@1 with its interval, pass@k, cons@k, format rate, lengths; one JSON file per task."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r1train.log.atomic import write_atomically
from r1train.log.result import EvalSummary

Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One graded sample of a problem. answer: its normal form, which votes (eval/extract.py), None where there is none.

    error: why the grader gave no verdict; it counts as not correct and is reported in grader_errors. timed_out:
    the grader was too slow on it, or out of memory or depth; not correct either, and reported in grader_timeouts.
    """

    correct: bool
    formatted: bool
    answer: str | None
    response_tokens: int
    truncated: bool
    error: str | None
    timed_out: bool = False


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Evaluation of one checkpoint on one task or suite. Rates are shares in [0, 1].

    pass_at_1: mean correctness of all samples; ci_low, ci_high: 95 % interval over problems (see interval).
    pass_at_k: k -> unbiased estimate, for powers of two up to the samples per problem; cons_at_k: majority vote,
    None where answers cannot vote (code, instructions). correct_by_problem: problem id -> number of correct samples.
    details: further shares that the suite knows. checkpoint: <step id>/<folder>; key: of what decides the numbers.
    """

    task: str
    problems: int
    samples: int
    samples_per_problem: int
    pass_at_1: float
    ci_low: float
    ci_high: float
    pass_at_k: dict[int, float]
    cons_at_k: float | None
    format_rate: float
    mean_response_tokens: float
    truncated_share: float
    grader_errors: int
    correct_by_problem: dict[str, int]
    grader_timeouts: int = 0
    details: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    key: str = ""

    def summary(self) -> EvalSummary:
        """The numbers of the stage table."""
        return EvalSummary(
            pass_at_1=self.pass_at_1,
            ci_low=self.ci_low,
            ci_high=self.ci_high,
            format_rate=self.format_rate,
            mean_response_tokens=self.mean_response_tokens,
            problems=self.problems,
            samples=self.samples,
        )


def make_report(
    task: str,
    outcomes: dict[str, Sequence[Outcome]],
    *,
    votes: bool = True,
    details: dict[str, float] | None = None,
    checkpoint: str = "",
    key: str = "",
) -> EvalReport:
    """Counts the samples of each problem id. votes: whether answers are such that a majority can be asked for.

    Raises ValueError without problems or with unequal sample numbers.
    """
    sizes = {len(samples) for samples in outcomes.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"task {task}: samples per problem are {sorted(sizes)}, they must be equal and at least 1")
    num_samples = sizes.pop()
    everything = [outcome for samples in outcomes.values() for outcome in samples]
    correct = {problem: sum(o.correct for o in samples) for problem, samples in outcomes.items()}
    shares = [count / num_samples for count in correct.values()]
    low, high = interval(shares, samples_per_problem=num_samples)
    powers = [2**power for power in range(num_samples.bit_length())]
    return EvalReport(
        task=task,
        problems=len(outcomes),
        samples=len(everything),
        samples_per_problem=num_samples,
        pass_at_1=math.fsum(shares) / len(shares),
        ci_low=low,
        ci_high=high,
        pass_at_k={k: _mean([pass_at_k(num_samples, count, k) for count in correct.values()]) for k in powers},
        cons_at_k=_mean([consensus(samples) for samples in outcomes.values()]) if votes else None,
        format_rate=_mean([o.formatted for o in everything]),
        mean_response_tokens=_mean([o.response_tokens for o in everything]),
        truncated_share=_mean([o.truncated for o in everything]),
        grader_errors=sum(o.error is not None for o in everything),
        grader_timeouts=sum(o.timed_out for o in everything),
        correct_by_problem=correct,
        details=details or {},
        checkpoint=checkpoint,
        key=key,
    )


def interval(shares: Sequence[float], *, samples_per_problem: int) -> tuple[float, float]:
    """95 % interval of the mean over problems, problems being the random draw (samples of one problem are not).

    shares: correct share of each problem, [N]. Wilson's score interval with the effective number of draws p (1 - p) /
    se^2, se^2 the variance of the mean over problems: with one sample per problem that is N and the plain Wilson
    interval. At p = 0 and 1, where no variance can be seen, it is N. Unlike mean +- 1.96 se, it stays in [0, 1] and
    never has width 0.
    """
    count = len(shares)
    mean = math.fsum(shares) / count
    variance = math.fsum((share - mean) ** 2 for share in shares) / count
    spread = mean * (1.0 - mean)
    most = float(count * samples_per_problem)
    draws = float(count) if spread <= 0.0 else min(most, spread * count / variance if variance > 0.0 else most)
    scale = 1.0 + Z_95**2 / draws
    centre = (mean + Z_95**2 / (2.0 * draws)) / scale
    half = Z_95 / scale * math.sqrt(max(spread, 0.0) / draws + Z_95**2 / (4.0 * draws**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): chance that k of the n samples hold a correct one (arXiv 2107.03374 eq. 1)."""
    if not 0 < k <= samples:
        raise ValueError(f"k = {k} must be between 1 and the {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def consensus(samples: Sequence[Outcome]) -> float:
    """Correctness of the most frequent extracted answer (R1's cons@k); 0 when no sample has an answer.

    Answers are equal when their normal forms are; samples without an answer do not vote. Where several answers lead,
    the mean of their correctness, so that the order of the samples does not matter.
    """
    votes = Counter(outcome.answer for outcome in samples if outcome.answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {answer for answer, count in votes.items() if count == most}
    # One normal form may hold differently graded texts: each leader's correctness is a mean, and all have `most` votes.
    return _mean([outcome.correct for outcome in samples if outcome.answer in leading])


def write_report(folder: Path, report: EvalReport) -> Path:
    """Writes <folder>/<task>.json atomically and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.task}.json"
    write_atomically(path, json.dumps(asdict(report), indent=1) + "\n")
    return path


def read_report(path: Path) -> EvalReport:
    """Inverse of write_report."""
    row = json.loads(path.read_text(encoding="utf-8"))
    return EvalReport(**{**row, "pass_at_k": {int(k): value for k, value in row["pass_at_k"].items()}})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
