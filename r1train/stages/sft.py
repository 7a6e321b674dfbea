"""Supervised fine-tuning: chat examples and a checkpoint -> checkpoint (cold start, rejection-sampled set)."""

from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.sft import SftSource
from r1train.log.result import StageResult
from r1train.stages.session import session, stage_result
from r1train.stages.training import open_trainer, policy_evals
from r1train.train.batches import packed_micro_batches
from r1train.train.forward import LmObjective
from r1train.train.loop import StepSource, train_loop


def run(cfg: RunConfig) -> StageResult:
    """Train on packed, isolated examples, with loss on the responses, to stage.steps."""
    with session(cfg) as job:
        stage = cfg.stage
        source = SftSource(stage.dataset, job.tokenizer, seq_length=stage.seq_length, seed=cfg.seed)
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

        def batches(position: int, samples: int):
            rows = source.batch(position, samples, dp_rank=rank, dp_size=size)
            return packed_micro_batches(rows, seq_length=stage.seq_length, pad_id=job.tokenizer.pad_id)

        trainer = open_trainer(job)
        train_loop(trainer, StepSource(batches, samples=lambda _: stage.batch_size), LmObjective())
        return stage_result(job, policy_evals(job, trainer))
