"""Which steps of a schedule are stale, and what can be done about it: refuse, run again, or keep. docs/lineage.md."""

import os
from collections.abc import Sequence
from pathlib import Path

from r1train.config.schema import PrepareStage, RunConfig
from r1train.errors import StaleRun
from r1train.log.manifest import Digests, read_manifest
from r1train.log.result import read_result
from r1train.stages.data_folder import set_data_aside
from r1train.stages.lineage import inputs_of, reasons

SHOWN_REASONS = 5
FIX = (
    "Fix: put it back as it was; or stale=rerun to move these run folders aside (<step>.stale_N, nothing is deleted) "
    "and run the steps again; or stale=keep to go on with what is there"
)
# stale=rerun belongs to the schedule: of a stage's ranks none could know when another has moved their folder.
FIX_ALONE = (
    "Fix: put it back as it was; or move {} aside (or give another step=) and start the stage again; or stale=keep to "
    "go on with what is there"
)


def stale_steps(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Step id -> why it is stale, in schedule order. A step whose parent is stale or has to run again is stale, too."""
    found: dict[str, list[str]] = {}
    digests = Digests(Path(configs[0].root))
    for cfg in configs:
        why = reasons(cfg, digests)
        if read_manifest(cfg.run_dir) is not None and read_result(cfg.run_dir) is not None:
            for parent in parents_of(cfg, configs):
                if parent.step in found:
                    why.append(f"its parent {parent.step} is stale")
                elif read_result(parent.run_dir) is None:
                    why.append(f"its parent {parent.step} is not finished, so it has to run again")
        if why:
            found[cfg.step] = why
    return found


def parents_of(cfg: RunConfig, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Earlier steps of the schedule whose run folder or data the step reads, by its config or by its manifest."""
    root = Path(cfg.root)
    digests = Digests(root)
    manifest = read_manifest(cfg.run_dir)
    artifacts = manifest.inputs if manifest is not None else inputs_of(cfg, digests)
    paths = [digests.place(artifact).absolute() for artifact in artifacts]
    earlier = configs[: [other.step for other in configs].index(cfg.step)]
    folders = {other.step: Path(other.data.dir) if _prepares(other) else other.run_dir for other in earlier}
    return [other for other in earlier if any(path.is_relative_to(folders[other.step].absolute()) for path in paths)]


def refuse(stale: dict[str, list[str]], *, fix: str = FIX) -> None:
    """Raises StaleRun, with every reason and what can be done, when a step is stale."""
    if not stale:
        return
    lines = []
    for step, why in stale.items():
        more = f"; and {len(why) - SHOWN_REASONS} more" if len(why) > SHOWN_REASONS else ""
        lines.append(f"\n  - {step}: {'; '.join(why[:SHOWN_REASONS])}{more}")
    count = f"{len(stale)} step{'s are' if len(stale) > 1 else ' is'} stale"
    raise StaleRun(f"{count}, nothing was changed:{''.join(lines)}\n{fix}")


def set_aside(configs: Sequence[RunConfig], stale: dict[str, list[str]]) -> list[Path]:
    """Moves the run folders of stale steps to <step>.stale_N, and what a stale prepare step wrote to data.stale_N.

    A user's own files in the data folder stay where they are. Returns the new places.
    """
    moved = []
    for cfg in configs:
        if cfg.step not in stale:
            continue
        data = Path(cfg.data.dir)
        if _prepares(cfg) and set_data_aside(data, place := _free_place(data)):
            moved.append(place)
        if cfg.run_dir.exists():
            moved.append(_free_place(cfg.run_dir))
            os.rename(cfg.run_dir, moved[-1])
    return moved


def check_run(cfg: RunConfig) -> None:
    """Raises StaleRun when a begun or finished stage does not fit its config, its inputs or its own files any more."""
    why = reasons(cfg, Digests(Path(cfg.root)))
    refuse({cfg.step: why} if why else {}, fix=FIX_ALONE.format(cfg.run_dir))


def _free_place(folder: Path) -> Path:
    number = 1
    while (place := folder.with_name(f"{folder.name}.stale_{number}")).exists():
        number += 1
    return place


def _prepares(cfg: RunConfig) -> bool:
    return isinstance(cfg.stage, PrepareStage)
