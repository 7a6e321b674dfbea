"""Speed of training: our trainer's whole step (stages' own classes, optimizer included) on random tokens.

torchrun --nproc-per-node N tools/bench_train.py [--precision bf16|blockwise|current|fp32] [--micro-batch-size 2]
    [--ep N --tp N --pp N --pp-layout L] [--dispatcher alltoall|flex] [--overrides KEY=VALUE ...] [--out FILE.jsonl]

The model is conf/model/bench_v3_slice.yaml with 16 experts per expert rank: the shape of the megatron-core baseline in
docs/performance.md, its sequences of 4096 and its 16,384 tokens per GPU and step. --overrides changes anything else, as
on the command line of r1train (model=..., parallel.recompute_modules=[...]); --set NAME=VALUE sets a field of
megatron-core's config behind our builder. The last line is JSON: median and spread of the steps after the warm-up,
tokens/s/GPU, TFLOP/s/GPU (r1train/plan/compute.py: 6 per active parameter, causal attention counted half), peak memory,
and what computes. One process per GPU; fewer processes need smaller --ep.
"""

import argparse
import ast
import json
import logging
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from r1train.config.load import load_config
from r1train.config.schema import RunConfig
from r1train.dist.init import Device, close_processes, init_processes, is_rank0, select_device
from r1train.errors import R1TrainError, exit_code
from r1train.plan.compute import flops_per_token

PRECISION = {"bf16": "bf16", "blockwise": "fp8_blockwise", "current": "fp8_tensorwise", "fp32": "fp32"}
EXPERTS_PER_RANK = 16
# Five layers: the longer stages first, because the last one has the head.
LAYOUTS = {1: "null", 2: "'Ettt|ttL'", 4: "'Ett|t|t|tL'"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line. step_s: median; low_s, high_s: fastest and slowest measured step. Rates are of one GPU."""

    layout: str
    precision: str
    micro_batch_size: int
    micro_batches: int
    step_s: float
    low_s: float
    high_s: float
    steps: int
    tokens_per_s: float
    tflops: float
    peak_memory_gib: float
    parameters_per_gpu: int
    loss: float
    backends: dict[str, str]


def config_for(args: argparse.Namespace, world_size: int) -> RunConfig:
    """The run's config through r1train's own loader and checks. Raises ConfigError."""
    dp = world_size // (args.tp * args.pp)
    samples = args.tokens_per_gpu * world_size // args.seq_length
    overlap = str(dp > 1).lower()
    if not args.pp_layout and args.pp not in LAYOUTS:
        raise R1TrainError(f"--pp {args.pp}: no layout is known for it. Fix: --pp-layout, such as Ettt|ttL")
    layout = f"'{args.pp_layout}'" if args.pp_layout else LAYOUTS[args.pp]
    return load_config(
        [
            "model=bench_v3_slice",
            "cluster=one_gpu",
            "optim=adamw_bf16",
            "stage=pretrain",
            "step=bench",
            f"cluster.processes_per_node={world_size}",
            f"parallel.world_size={world_size}",
            f"parallel.tp={args.tp}",
            f"parallel.ep={args.ep}",
            f"parallel.dispatcher={args.dispatcher}",
            f"parallel.overlap_grad_reduce={overlap}",
            f"parallel.overlap_param_gather={overlap}",
            f"optim.precision={PRECISION[args.precision]}",
            f"optim.moments_dtype={'fp32' if args.precision == 'fp32' else 'bf16'}",
            f"stage.steps={args.warm_up + args.steps}",
            f"stage.seq_length={args.seq_length}",
            f"stage.batch_size={samples}",
            f"stage.micro_batch_size={args.micro_batch_size}",
            "data.tokenizer_vocab_size=16384",
            "lr.learning_rate={start: 1e-4, segments: []}",
            f"parallel.pp={args.pp}",
            f"parallel.pp_layout={layout}",
            f"model.num_experts={EXPERTS_PER_RANK * args.ep}",
            *args.overrides,
        ],
        check_files=False,
    )


def fields_of(settings: list[str]) -> dict[str, object]:
    """--set NAME=VALUE, values as Python literals, plain words as strings. Raises R1TrainError."""
    fields: dict[str, object] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise R1TrainError(f"--set {setting}: not NAME=VALUE. Fix: --set moe_shared_expert_overlap=True")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return fields


def set_fields(fields: dict[str, object]) -> None:
    """From now on our builder's arguments to megatron-core's config are overruled by these."""
    from r1train.model import spec_deepseek  # noqa: PLC0415 - after select_device, as everything with megatron-core

    made = spec_deepseek.MLATransformerConfig
    spec_deepseek.MLATransformerConfig = lambda **arguments: made(**(arguments | fields))


def measure(cfg: RunConfig, device: Device, *, warm_up: int) -> Measured:
    """Trains stage.steps steps and times each from barrier to the end of the optimizer, like the baseline."""
    from megatron.core import parallel_state  # noqa: PLC0415 - after select_device

    from r1train.train.backends import attention_in_use, describe  # noqa: PLC0415
    from r1train.train.batches import dense_micro_batches  # noqa: PLC0415
    from r1train.train.forward import LmObjective  # noqa: PLC0415
    from r1train.train.setup import build_trainer  # noqa: PLC0415
    from r1train.train.step import train_step  # noqa: PLC0415

    stage, dp_rank = cfg.stage, parallel_state.get_data_parallel_rank()
    trainer = build_trainer(cfg, device, total_steps=stage.steps)
    rows = stage.batch_size // cfg.parallel.dp
    generator = torch.Generator(device.torch_device).manual_seed(dp_rank)
    seconds = []
    for _ in range(stage.steps):
        shape = (rows, stage.seq_length + 1)
        windows = torch.randint(cfg.model.vocab_size, shape, device=device.torch_device, generator=generator)
        batches = dense_micro_batches(windows, stage.micro_batch_size)
        _wait(device)
        started = time.perf_counter()
        result = train_step(trainer, batches, LmObjective())
        _wait(device)
        seconds.append(time.perf_counter() - started)
        trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=stage.batch_size)
    kernel = {"attention kernel": attention_in_use()} if device.type == "cuda" else {}
    kept = seconds[warm_up:]
    median, world_size = statistics.median(kept), cfg.parallel.world_size
    rate = stage.batch_size * stage.seq_length / median / world_size
    flops = flops_per_token(cfg.model, seq_length=stage.seq_length, mtp=True)
    return Measured(
        layout=f"tp{cfg.parallel.tp} pp{cfg.parallel.pp} ep{cfg.parallel.ep} dp{cfg.parallel.dp}",
        precision=cfg.optim.precision,
        micro_batch_size=stage.micro_batch_size,
        micro_batches=len(batches),
        step_s=round(median, 4),
        low_s=round(min(kept), 4),
        high_s=round(max(kept), 4),
        steps=len(kept),
        tokens_per_s=round(rate, 1),
        tflops=round(flops * rate / 1e12, 3),
        peak_memory_gib=round(_peak_bytes(device) / 2**30, 2),
        parameters_per_gpu=sum(parameter.numel() for module in trainer.modules for parameter in module.parameters()),
        loss=round(result.logs["loss"], 4),
        backends={**describe(device, trainer.modules), **kernel},
    )


def _wait(device: Device) -> None:
    """All queued work of all ranks is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    torch.distributed.barrier()


def _peak_bytes(device: Device) -> float:
    """Largest peak of allocated device memory of any rank; 0 on CPU."""
    own = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    peak = torch.tensor(float(own), device=device.torch_device)
    torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
    return peak.item()


def run(args: argparse.Namespace) -> None:
    cfg = config_for(args, int(os.environ.get("WORLD_SIZE", "1")))
    fields = fields_of(args.set)
    logging.getLogger("r1train").addHandler(logging.StreamHandler())
    logging.getLogger("r1train").setLevel(logging.INFO)
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    from r1train.dist.seed import seed_all  # noqa: PLC0415 - after select_device

    seed_all(cfg.seed)
    set_fields(fields)
    line = json.dumps(asdict(measure(cfg, device, warm_up=args.warm_up)) | {"set": fields})
    if is_rank0():
        print(line, flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    close_processes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISION), default="bf16", help="blockwise, current: FP8")
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--tokens-per-gpu", type=int, default=16384, help="of one step")
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8, help="measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--ep", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--pp-layout", help="E embedding, t layer, L head, | next stage; known for --pp 2 and 4")
    parser.add_argument("--dispatcher", choices=("alltoall", "allgather", "flex"), default="alltoall")
    parser.add_argument("--overrides", nargs="*", default=[], help="Hydra overrides, applied last")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE of megatron-core's config, for experiments")
    parser.add_argument("--out", type=Path, help="file to which the line is appended")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
