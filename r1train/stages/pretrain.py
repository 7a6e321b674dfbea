"""Pre-training: blended corpora -> checkpoint."""

from pathlib import Path

from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.pretrain import PretrainSource
from r1train.log.result import StageResult
from r1train.stages.session import session, stage_result
from r1train.stages.training import open_trainer, policy_evals
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective
from r1train.train.loop import StepSource, train_loop


def run(cfg: RunConfig) -> StageResult:
    """Train on windows of running text from the run's last checkpoint, or from initial weights, to stage.steps."""
    with session(cfg) as job:
        stage = cfg.stage
        weights = {corpus.name: corpus.weight for corpus in cfg.data.corpora}
        source = PretrainSource(Path(cfg.data.dir) / "corpus", weights, seq_length=stage.seq_length, seed=cfg.seed)
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

        def batches(position: int):
            windows = source.batch(position, stage.batch_size, dp_rank=rank, dp_size=size)
            return dense_micro_batches(windows, stage.micro_batch_size)

        trainer = open_trainer(job)
        train_loop(trainer, StepSource(batches, samples=stage.batch_size), LmObjective())
        return stage_result(job, policy_evals(job, trainer))
