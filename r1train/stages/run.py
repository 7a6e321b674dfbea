"""Run one stage in this process (torchrun starts one per rank): artifacts into the run folder, result.json last."""

from collections.abc import Callable
from dataclasses import replace

from r1train.config.load import dump_resolved
from r1train.config.schema import PrepareStage, RunConfig
from r1train.dist.init import is_rank0, launch_rank, select_device, set_cuda_queues
from r1train.log.lock import hold
from r1train.log.manifest import write_manifest
from r1train.log.result import StageResult, read_result, write_result
from r1train.stages.lineage import begin_manifest, finish_manifest
from r1train.stages.prompt_files import check_prompt_files
from r1train.stages.stale import check_run

# A killed process with much memory takes seconds to be gone.
WAIT_S = 30.0


def run_stage(cfg: RunConfig, *, keep_stale: bool = False) -> None:
    """Run, or continue, the stage; a run folder that already holds its result is left alone, which rank 0 says.

    keep_stale: continue, or take what is finished, even where the stage began with another config or other inputs, or
    its files were altered; else StaleRun says what differs. Raises RunInUse when the same rank of another attempt is
    still running in this run folder; DataError, before anything is written, for problems that no verifier could grade.
    """
    if read_result(cfg.run_dir) is not None:
        if is_rank0():
            if not keep_stale:
                check_run(cfg)
            print(f"{cfg.step}: already finished, nothing to do ({cfg.run_dir})", flush=True)
        return
    with hold(cfg.run_dir / "locks" / f"rank_{launch_rank()}.lock", wait_s=WAIT_S):
        set_cuda_queues(cfg.cluster, cfg.parallel)
        # Data are prepared without a GPU, so that a login node can do it.
        select_device(replace(cfg.cluster, device="cpu") if isinstance(cfg.stage, PrepareStage) else cfg.cluster)
        stage = stage_function(cfg.stage.name)
        if is_rank0():
            if not keep_stale:
                check_run(cfg)
            check_prompt_files(cfg)
            dump_resolved(cfg, cfg.run_dir)
            manifest = begin_manifest(cfg)
            write_manifest(cfg.run_dir, manifest)
        result = stage(cfg)
        if is_rank0():
            write_manifest(cfg.run_dir, finish_manifest(cfg, manifest, result))
            write_result(cfg.run_dir, result)


def stage_function(name: str) -> Callable[[RunConfig], StageResult]:
    """What this kind of stage runs."""
    # Imported here, one stage only: megatron-core has to see select_device's stand-ins, and start-up takes seconds.
    match name:
        case "prepare":
            from r1train.stages.prepare import run_stage as run  # noqa: PLC0415
        case "pretrain":
            from r1train.stages.pretrain import run  # noqa: PLC0415
        case "sft" | "distill":
            from r1train.stages.sft import run  # noqa: PLC0415
        case "grpo":
            from r1train.stages.grpo import run  # noqa: PLC0415
        case "reject" | "collect":
            from r1train.stages.reject import run  # noqa: PLC0415
        case "pairs":
            from r1train.stages.pairs import run  # noqa: PLC0415
        case "reward_model":
            from r1train.stages.reward_model import run  # noqa: PLC0415
        case "evaluate":
            from r1train.stages.evaluate import run  # noqa: PLC0415
        case _:
            raise ValueError(f"no stage is called {name!r}")
    return run
