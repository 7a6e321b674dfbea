"""Reference for a pretrain run: transformers' own DeepSeek-V3, torch's own AdamW, the run's token batches in its order.

python tools/reference_pretrain.py --run runs/mini_pretrain/pretrain --out runs/mini_pretrain/reference
python tools/reference_pretrain.py --overrides experiment=mini_pretrain step=pretrain stage=pretrain --out DIR

One process, one GPU (or the CPU). Taken from the run: model, seed, batches, schedules, optimizer, clip, held-out
windows. Same as ours: loss over all tokens of a step, weight decay on matrices only, gates in fp32, the sequence-wise
balance loss and the experts' bias, of which transformers computes neither: reference_model.py adds them. Not the same:
no MTP, neither its loss nor its parameters, so compare with a run with model.mtp_depth=0 where that matters; bf16 by
autocast over fp32 weights, where norms and residuals stay fp32; moments in fp32; initial weights of the same
distribution but other draws, unless --weights names an export of ours (tools/export_hf.py --dtype fp32).
DIR gets metrics.jsonl, eval/perplexity.json and reference.json; one that has metrics.jsonl is refused.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml  # type: ignore[import-untyped]
from reference_model import Reference, build_adamw, build_reference

from r1train.config.load import load_config
from r1train.config.schema import PretrainStage, RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.config.validate import build_recorded
from r1train.convert.hf_export_config import model_to_hf
from r1train.data.dali import open_loader
from r1train.data.heldout import Windows, heldout_windows
from r1train.data.loader import Reader
from r1train.data.pretrain import PretrainSource
from r1train.data.tokenizer import Tokenizer
from r1train.errors import ConfigError, DataError, R1TrainError, exit_code
from r1train.eval.perplexity import CorpusPerplexity, weighted_loss, write_perplexity
from r1train.log.atomic import write_atomically
from r1train.log.metrics import FILE_NAME, MetricsWriter, read_metrics
from r1train.log.result import read_result
from r1train.train.schedules import Progress, batch_size_at, value_at
from r1train.train.state import TrainState

WARM_UP_STEPS = 5


def read_config(args: argparse.Namespace) -> RunConfig:
    """The run's config. Raises ConfigError for a run that transformers cannot imitate."""
    if args.run is None:
        cfg = load_config(args.overrides)
    else:
        path = args.run / "resolved.yaml"
        if not path.is_file():
            raise DataError(f"{path} is not there. Fix: name the folder of a pretrain run, or use --overrides")
        cfg, problems = build_recorded(yaml.safe_load(path.read_text(encoding="utf-8")))
        if problems:
            raise ConfigError(problems)
    model = cfg.model
    reason = None
    if not isinstance(cfg.stage, PretrainStage):
        reason = f"stage {cfg.stage.name} is no pre-training"
    elif not isinstance(model, ModelConfig) or model_to_hf(model, dtype="float32")["model_type"] != "deepseek_v3":
        reason = f"model {model.name} is not of transformers' class DeepseekV3ForCausalLM"
    elif cfg.data.mask_across_documents:
        reason = "data.mask_across_documents: this reference attends across documents, as V3 does"
    elif cfg.stage.init_from is not None and args.weights is None:
        reason = "stage.init_from is set, so --weights has to name an export of that checkpoint"
    if reason:
        raise R1TrainError(f"no reference for this run: {reason}")
    return cfg


def train_step(
    reference: Reference, optimizer: torch.optim.AdamW, windows: torch.Tensor, state: TrainState, *, rows: int
) -> dict[str, float]:
    """One optimizer step on windows [n, S + 1], `rows` at a time; the values of its line in metrics.jsonl."""
    cfg, count = reference.cfg, int((windows[:, 1:] >= 0).sum())
    progress = Progress(state.tokens, state.step, cfg.stage.steps)
    for group in optimizer.param_groups:
        group["lr"] = value_at(cfg.lr.learning_rate, progress)
    reference.model.train()
    loss_sum = torch.zeros((), device=reference.device)
    sequence_loss = torch.zeros((), device=reference.device)
    for part in windows.split(rows):
        loss = reference.losses(part).sum()
        layers = sum((part.sequence_loss for part in reference.balance), loss.new_zeros(()))
        share = len(part) / len(windows)
        (loss / count + share * reference.moe.sequence_loss_coef * layers).backward()
        loss_sum += loss.detach()
        sequence_loss += share * layers.detach()
    grad_norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), cfg.optim.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
    bias_rate = value_at(cfg.lr.bias_rate, progress)
    for part in reference.balance:
        part.update_bias(bias_rate)
    balance = reference.balance
    return {
        "loss": loss_sum.item() / count,
        **({"balance/sequence_loss": sequence_loss.item() / len(balance)} if balance else {}),
        "grad_norm": grad_norm.item(),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "bias_rate": bias_rate,
        "sequences": len(windows),
    }


@contextmanager
def step_windows(cfg: RunConfig, device: torch.device) -> Iterator[Callable[[TrainState], torch.Tensor]]:
    """What gives every step's windows: the run's loader, blend, seed and batch ramp, for all of its ranks together."""
    weights = {corpus.name: corpus.weight for corpus in cfg.data.corpora}
    folder, seq_length, packing = Path(cfg.data.dir) / "corpus", cfg.stage.seq_length, cfg.data.packing
    source = PretrainSource(folder, weights, seq_length=seq_length, seed=cfg.seed, packing=packing)
    with open_loader(cfg.data.loader, Reader(source, 0, 1), device) as loader:

        def windows(state: TrainState) -> torch.Tensor:
            progress = Progress(state.tokens, state.step, cfg.stage.steps)
            return loader.batch(state.position, batch_size_at(cfg.lr, cfg.stage.batch_size, progress))

        yield windows


def train(reference: Reference, out: Path, *, rows: int) -> list[float]:
    """All steps; metrics.jsonl in `out`. Returns the tokens per second of every step."""
    cfg, optimizer, state, rates = reference.cfg, build_adamw(reference), TrainState(), []
    writer = MetricsWriter(out, rank=0, start_step=0, tensorboard=False)
    with writer, step_windows(cfg, reference.device) as windows_of:
        while state.step < cfg.stage.steps:
            started = time.monotonic()
            windows = windows_of(state)
            values = train_step(reference, optimizer, windows, state, rows=rows)
            tokens, seconds = windows[:, 1:].numel(), time.monotonic() - started
            rates.append(tokens / seconds)
            state = state.after_step(tokens=tokens, samples=len(windows))
            times = {"time/step_s": seconds, "time/tokens_per_s": rates[-1]}
            writer.write(state.step, {"tokens": state.tokens, **values, **times})
            row = f"step {state.step}/{cfg.stage.steps}  loss {values['loss']:.4f}  {rates[-1]:,.0f} tokens/s"
            print(row, flush=True)
    return rates


@torch.no_grad()
def heldout_loss(reference: Reference, out: Path, *, rows: int) -> float | None:
    """r1train/eval/perplexity.py's number on its windows; None where nothing was held out."""
    cfg, corpora = reference.cfg, {}
    tokenizer = Tokenizer.load(Path(cfg.data.dir) / "tokenizer")
    for corpus in cfg.data.corpora:
        if corpus.weight <= 0:
            continue
        folder, length = Path(cfg.data.dir) / "corpus", cfg.stage.seq_length
        windows = heldout_windows(
            folder, corpus.name, tokenizer, seq_length=length, max_tokens=cfg.eval.perplexity_tokens
        )
        if windows is not None:
            corpora[corpus.name] = measure(reference, windows, rows=rows)
    if not corpora:
        return None
    loss = weighted_loss(corpora, {corpus.name: corpus.weight for corpus in cfg.data.corpora})
    write_perplexity(out / "eval", corpora, loss)
    return loss


def measure(reference: Reference, windows: Windows, *, rows: int) -> CorpusPerplexity:
    """Mean cross entropy of the tokens that count."""
    reference.model.eval()
    total, count = 0.0, 0
    for tokens, mask in zip(windows.tokens.split(rows), windows.mask.split(rows), strict=True):
        losses = reference.losses(tokens.to(reference.device))
        total += float((losses * mask.to(reference.device)).sum())
        count += int(mask.sum())
    mean = torch.tensor(total / count, dtype=torch.float64)
    return CorpusPerplexity(loss=mean.item(), perplexity=mean.exp().item(), tokens=count)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """reference.json. parameters: of the reference; run_*: what the run itself reported, None where it did not finish.

    experts, attention: transformers' ways of computing them. tokens_per_s: median after the first steps.
    """

    parameters: int
    weights: str
    experts: str
    attention: str
    precision: str
    mtp: str
    steps: int
    heldout_loss: float | None
    run_heldout_loss: float | None
    tokens_per_s: float
    run_tokens_per_s: float | None


def summarise(reference: Reference, args: argparse.Namespace, rates: list[float], loss: float | None) -> Summary:
    cfg, depth = reference.cfg, reference.moe.mtp_depth
    result = None if args.run is None else read_result(args.run)
    run_rates = [] if result is None else [row["time/tokens_per_s"] for row in read_metrics(args.run / FILE_NAME)]
    return Summary(
        parameters=sum(parameter.numel() for parameter in reference.model.parameters()),
        weights="initial" if args.weights is None else str(args.weights),
        experts=str(reference.model.config._experts_implementation),
        attention=str(reference.model.config._attn_implementation),
        precision="fp32" if cfg.optim.precision == "fp32" else "bf16 autocast, fp32 weights",
        mtp=f"not computed here; the run has {depth} layer(s)" if depth else "none on either side",
        steps=cfg.stage.steps,
        heldout_loss=loss,
        run_heldout_loss=None if result is None else result.heldout_loss,
        tokens_per_s=statistics.median(rates[WARM_UP_STEPS:] or rates),
        run_tokens_per_s=statistics.median(run_rates[WARM_UP_STEPS:] or run_rates) if run_rates else None,
    )


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    if (args.out / FILE_NAME).exists():
        raise R1TrainError(f"{args.out / FILE_NAME} is there already. Fix: another --out, or remove it")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    rows = args.micro_batch_size or cfg.stage.micro_batch_size
    reference = build_reference(cfg, args.weights, device)
    rates = train(reference, args.out, rows=rows)
    summary = summarise(reference, args, rates, heldout_loss(reference, args.out, rows=rows))
    write_atomically(args.out / "reference.json", json.dumps(asdict(summary), indent=1) + "\n")
    print(json.dumps(asdict(summary), indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="folder of a pretrain run, finished or not")
    which.add_argument("--overrides", nargs="+", help="Hydra overrides of a run that is only planned")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--weights", type=Path, help="folder of tools/export_hf.py (--dtype fp32) to start from")
    parser.add_argument("--micro-batch-size", type=int, help="windows per forward; default: the run's")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
