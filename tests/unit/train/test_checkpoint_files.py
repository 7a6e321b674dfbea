"""Which checkpoint folders count. Saving and loading are tested in tests/multi."""

from pathlib import Path

import pytest

from r1train.errors import CheckpointError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Steps 20 and 120 finished, step 200 cut off before its marker was renamed into place."""
    for name, marker in (("step_00000020", "_DONE"), ("step_00000120", "_DONE"), ("step_00000200", "_DONE.tmp")):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / marker).write_text("{}")
    return tmp_path


def test_folders_without_marker_do_not_count(run_dir):
    from r1train.log.checkpoints import checkpoints
    from r1train.train.checkpoint import latest_checkpoint

    assert [folder.name for folder in checkpoints(run_dir)] == ["step_00000020", "step_00000120"]
    assert latest_checkpoint(run_dir) == run_dir / "checkpoints" / "step_00000120"


def test_no_finished_checkpoint_is_an_error(tmp_path):
    from r1train.log.checkpoints import checkpoints
    from r1train.train.checkpoint import latest_checkpoint

    assert checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="holds no finished checkpoint. Fix: let that stage finish"):
        latest_checkpoint(tmp_path)


def test_unfinished_folder_is_refused(run_dir):
    from r1train.train.checkpoint import load_module

    with pytest.raises(CheckpointError, match="step_00000200 has no _DONE marker"):
        load_module(None, run_dir / "checkpoints" / "step_00000200")
