"""Run one stage in this process (torchrun starts one per rank): artifacts into the run folder, result.json last."""

from collections.abc import Callable

from r1train.config.load import dump_resolved
from r1train.config.schema import RunConfig
from r1train.dist.init import is_rank0, select_device
from r1train.log.result import StageResult, read_result, write_result


def run_stage(cfg: RunConfig) -> None:
    """Run, or continue, the stage; a run folder that already holds its result is left alone."""
    if read_result(cfg.run_dir) is not None:
        return
    select_device(cfg.cluster)
    stage = stage_functions()[cfg.stage.name]
    if is_rank0():
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        dump_resolved(cfg, cfg.run_dir)
    result = stage(cfg)
    if is_rank0():
        write_result(cfg.run_dir, result)


def stage_functions() -> dict[str, Callable[[RunConfig], StageResult]]:
    """What each kind of stage runs."""
    # Imported here, after select_device: the stages import megatron-core, which has to see the CPU stand-ins.
    from r1train.stages import evaluate, grpo, prepare, pretrain, reject, sft  # noqa: PLC0415

    return {
        "prepare": prepare.run_stage,
        "pretrain": pretrain.run,
        "sft": sft.run,
        "grpo": grpo.run,
        "reject": reject.run,
        "evaluate": evaluate.run,
    }
