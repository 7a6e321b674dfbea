"""Rollouts drawn by older weights: how old is known exactly, and a killed run goes on with what they had drawn."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics
from r1train.rollout.types import Sample, group_from_row, read_rows

pytestmark = pytest.mark.e2e

STEPS = 10
# Checkpoints at 4, 8 and 10; a rollout serves two steps, so a run that is killed at step 6 goes back to step 4.
LENGTH = (f"stage.steps={STEPS}", "stage.save_every_steps=4", "rl.correction={weight: tis, weight_high: 2.0}")
MODES = {
    "one-step-off": ("rollout.asynchrony.mode=one-step-off",),
    "partial": (
        "rollout.asynchrony={mode: partial, new_tokens: 8, in_flight: 3.0}",
        "rollout.store_groups=true",
        "rl.routing_replay=engine",
    ),
}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(mode: str, tmp_path_factory: pytest.TempPathFactory, grpo: Callable) -> Path:
    root = tmp_path_factory.mktemp(f"{mode}_whole")
    done = grpo(root, *LENGTH, *MODES[mode])
    assert done.returncode == 0, done.output[-4000:]
    return root / "rl1"


@pytest.fixture(scope="module")
def broken(mode: str, whole: Path, tmp_path_factory: pytest.TempPathFactory, grpo: Callable) -> Path:
    """Killed in the first generation after step 6, then started again."""
    root = tmp_path_factory.mktemp(f"{mode}_broken")
    passes = [int(row["partial/passes"]) for row in metrics(whole)[:6:2]] if mode == "partial" else [2, 1, 1]
    killed = grpo(root, *LENGTH, *MODES[mode], fault="die", at=sum(passes) + 1)
    assert killed.returncode != 0
    assert [row["step"] for row in metrics(root / "rl1")] == [1, 2, 3, 4, 5, 6]
    assert [folder.parent.name for folder in root.glob("rl1/checkpoints/*/_DONE")] == ["step_00000004"]
    journals = {path.name for path in root.glob("rl1/rollouts/*.part.jsonl")}
    assert journals == ({f"step_00000006_dp_000{n}_pp_00.part.jsonl" for n in (0, 1)} if mode == "partial" else set())
    done = grpo(root, *LENGTH, *MODES[mode])
    assert done.returncode == 0, done.output[-4000:]
    return root / "rl1"


def metrics(run: Path) -> list[dict]:
    return read_metrics(run / "metrics.jsonl")


def samples(run: Path, turn: int) -> list[Sample]:
    """What the rollout for the steps after `turn` trained on, over both ranks."""
    files = [run / "rollouts" / f"step_{turn:08d}_dp_{rank:04d}.jsonl" for rank in (0, 1)]
    return [sample for file in files for row in read_rows(file) for sample in group_from_row(row).samples]


def test_a_killed_run_ends_bit_for_bit_the_same(whole: Path, broken: Path):
    assert [row["step"] for row in metrics(broken)] == list(range(1, STEPS + 1))
    assert first_difference(metrics(whole), metrics(broken), rtol=None) is None
    names = sorted(path.relative_to(whole) for path in whole.glob("rollouts/**/*.jsonl"))
    assert sorted(path.relative_to(broken) for path in broken.glob("rollouts/**/*.jsonl")) == names
    assert [name for name in names if (whole / name).read_bytes() != (broken / name).read_bytes()] == []
    assert len([name for name in names if name.parent.name == "rollouts"]) == STEPS // 2 * 2


def test_age_in_the_metrics_is_that_of_the_stored_tokens(whole: Path):
    """Counted again from the files: updates done when training on the rollout began, less those of each piece."""
    rows = metrics(whole)
    consumed = [0, *(row["tokens"] for row in rows)]
    tokens = [after - before for before, after in itertools.pairwise(consumed)]
    for turn in range(0, STEPS, 2):
        pieces = [(turn - version, count) for sample in samples(whole, turn) for version, count in sample.drawn_by]
        total = sum(count for _, count in pieces)
        assert total == tokens[turn] + tokens[turn + 1]
        # The second minibatch of a rollout is one update older.
        found = sum((rows[turn + n]["policy_age_mean"] - n) * tokens[turn + n] for n in (0, 1))
        assert found == pytest.approx(sum(age * count for age, count in pieces), abs=1e-6)
        assert max(rows[turn + n]["policy_age_max"] - n for n in (0, 1)) == max(age for age, _ in pieces)


def test_how_old(whole: Path, mode: str):
    """One step off: every token of the second rollout on is one rollout, two updates, older than necessary. Partial:
    some samples were drawn by several policies, and some tokens are new.
    """
    rows = metrics(whole)
    ages = [(row["policy_age_mean"], row["policy_age_max"]) for row in rows]
    assert ages[:2] == [(0, 0), (1, 1)]
    if mode == "one-step-off":
        assert ages[2:] == [(2, 2), (3, 3)] * 4
        return
    assert max(most for _, most in ages) >= 4
    assert all(0 < mean <= most for mean, most in ages[2:])
    assert any(mean < most for mean, most in ages[2:])
    drawn_by = [sample.drawn_by for turn in (2, 4, 6, 8) for sample in samples(whole, turn)]
    assert max(len(pieces) for pieces in drawn_by) >= 3
    assert all([v for v, _ in pieces] == sorted({v for v, _ in pieces}) for pieces in drawn_by)
    # Pieces have 8 tokens, but where a sample ended; several passes of one rollout make one piece.
    assert all(count % 8 == 0 for pieces in drawn_by for _, count in pieces[:-1])
    assert {row["replayed_share/update"] for row in rows} == {1.0}
    assert rows[-1]["partial/passes"] == 1.0
    assert {row["partial/carried_groups"] for row in rows} == {16.0}, "3 x 8 under way, 8 of them trained on"


def test_the_correction_sees_the_age(whole: Path):
    """rho is pi_old of the trainer now over mu of the weights that drew the token: 1 only where they are the same."""
    rows = metrics(whole)
    assert max(abs(row["engine_ratio/max"] - 1) for row in rows[:2]) < 1e-4
    assert [row["correction_mean"] for row in rows[:2]] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert min(row["logprob_gap_max"] for row in rows[2:]) > 0.01
    assert min(abs(row["correction_mean"] - 1.0) for row in rows[2:]) > 1e-5


def test_only_what_a_run_may_start_from_is_kept(whole: Path, mode: str):
    """The last file was written when checkpoints 4 and 8 (partial) or 4 (one step off, before 8 was saved) were there,
    and while a stop might still have saved the step that was trained on: 8, or 6.
    """
    steps = {int(path.name[5:13]) for path in whole.glob("rollouts/carried/*.jsonl")}
    assert steps == ({4, 6, 8} if mode == "one-step-off" else {4, 8, 10})
