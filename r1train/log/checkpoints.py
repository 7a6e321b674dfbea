"""Which checkpoints of a run folder are finished; without torch, so that checks and the schedule can ask."""

from pathlib import Path

# A folder counts as a checkpoint once this file is there; it is written last.
MARKER = "_DONE"
# How the names of the tensors of the weights' average begin (train/ema.py).
EMA_PREFIX = "ema."


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, finished or not."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoints of a run (<run_dir>/checkpoints/step_00000120), oldest first."""
    return sorted(marker.parent for marker in run_dir.glob(f"checkpoints/step_*/{MARKER}"))
