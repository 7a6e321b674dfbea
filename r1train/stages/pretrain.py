"""Pre-training: blended corpora -> checkpoint, and its perplexity on held-out documents."""

from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.corpus_check import check_corpus, check_heldout
from r1train.data.dali import open_loader
from r1train.data.fit import ensure_fit
from r1train.data.loader import Reader, WindowLoader
from r1train.data.pretrain import PretrainSource
from r1train.dist.init import is_rank0
from r1train.eval.perplexity import heldout_perplexity
from r1train.log.result import StageResult
from r1train.stages.session import Session, session, stage_result
from r1train.stages.training import open_trainer, policy_evals
from r1train.train.batches import dense_micro_batches, masked_micro_batches
from r1train.train.forward import LmObjective, MicroBatch
from r1train.train.loop import StepSource, train_loop
from r1train.train.schedules import Progress, batch_size_at
from r1train.train.state import TrainState


def run(cfg: RunConfig) -> StageResult:
    """Train on windows of running text from the run's last checkpoint, or from initial weights, to stage.steps."""
    with session(cfg) as job:
        with open_windows(job) as loader:
            trainer = open_trainer(job)
            train_loop(trainer, step_source(job, loader), LmObjective())
        heldout_loss = heldout_perplexity(trainer, job.tokenizer)
        return stage_result(job, policy_evals(job, trainer), heldout_loss=heldout_loss)


def open_windows(job: Session) -> WindowLoader:
    """The loader of this rank's windows. Raises DataError when a corpus does not fit the tokenizer or the blend."""
    cfg = job.cfg
    folder, weights = Path(cfg.data.dir) / "corpus", {corpus.name: corpus.weight for corpus in cfg.data.corpora}
    used = [folder / name for name, weight in weights.items() if weight > 0]
    for prefix in used:
        check_corpus(prefix, job.tokenizer)
        check_heldout(prefix, job.tokenizer)
    seq_length, packing = cfg.stage.seq_length, cfg.data.packing
    if packing == "best_fit":
        if is_rank0():
            for prefix in used:
                ensure_fit(prefix, seq_length)
        torch.distributed.barrier()
    source = PretrainSource(folder, weights, seq_length=seq_length, seed=cfg.seed, packing=packing)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    return open_loader(cfg.data.loader, Reader(source, rank, size), job.device.torch_device)


def step_source(job: Session, loader: WindowLoader) -> StepSource:
    """Batches of the size that the ramp has reached, with or without attention across documents."""
    stage, lr = job.cfg.stage, job.cfg.lr

    def samples(state: TrainState) -> int:
        return batch_size_at(lr, stage.batch_size, Progress(state.tokens, state.step, stage.steps))

    def batches(position: int, count: int) -> list[MicroBatch]:
        windows = loader.batch(position, count)
        if job.cfg.data.mask_across_documents:
            return masked_micro_batches(windows, eos_id=job.tokenizer.document_end_id)
        return dense_micro_batches(windows, stage.micro_batch_size)

    return StepSource(batches, samples)
