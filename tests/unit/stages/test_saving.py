"""A rollout that cannot be trusted ends the run, with the state before it saved."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from r1train.errors import DataError
from r1train.rl.routing import ReplayNotUsed
from r1train.rollout.push import PushFailed
from r1train.stages import saving


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of which a checkpoint was written."""
    steps: list[int] = []

    def write(trainer, extra_modules) -> None:
        assert extra_modules == {"reference": "module"}
        folder = trainer.cfg.run_dir / "checkpoints" / f"step_{trainer.state.step:08d}"
        folder.mkdir(parents=True)
        (folder / "_DONE").touch()
        steps.append(trainer.state.step)

    monkeypatch.setattr(saving, "save_checkpoint", write)
    return steps


def trainer(run_dir: Path, *, offload: bool = False) -> SimpleNamespace:
    cfg = SimpleNamespace(run_dir=run_dir, rl=SimpleNamespace(offload_during_rollout=offload))
    return SimpleNamespace(cfg=cfg, state=SimpleNamespace(step=6))


def fail(made: SimpleNamespace, error: Exception) -> None:
    with saving.saved_at_failure(made, {"reference": "module"}):
        raise error


@pytest.mark.parametrize("kind", [PushFailed, ReplayNotUsed])
def test_what_is_wrong_with_a_rollout_saves_the_state_once(tmp_path: Path, saved: list[int], kind: type):
    made = trainer(tmp_path)
    with pytest.raises(kind, match="weights differ. State saved at step 6"):
        fail(made, kind("weights differ"))
    with pytest.raises(kind):
        fail(made, kind("weights differ"))
    assert saved == [6]


def test_other_errors_and_a_state_in_host_memory_save_nothing(tmp_path: Path, saved: list[int]):
    with pytest.raises(DataError, match="bad$"):
        fail(trainer(tmp_path), DataError("bad"))
    with pytest.raises(PushFailed, match="weights differ$"):
        fail(trainer(tmp_path, offload=True), PushFailed("weights differ"))
    assert saved == []
