"""Tokens per second of generation: the native engine with and without CUDA graphs, and transformers' generate.

python tools/bench_rollout.py --run runs/tiny/cold_start --rows 64 --prompts 32 --samples 4 --tokens 40 \
    [--export DIR] [--overrides experiment=tiny ...] [--out rates.jsonl]
python tools/bench_rollout.py --prompt-tokens 40 --rows 512 --prompts 32 --samples 16 --tokens 120 \
    --overrides experiment=mini_grpo
python tools/bench_rollout.py --prompt-tokens 100 --rows 256 --prompts 16 --samples 16 --tokens 256 --engines graphs \
    --profile --overrides experiment=smollm2_grpo

Every response has exactly --tokens tokens (with --natural they end when they end), the same prompts for every engine.
One process; each engine in a process of its own. Without --run: initial weights and random prompts of --prompt-tokens
tokens. --export: a folder of tools/export_hf.py, for transformers. Weights lie as RL has them, in one buffer, or
(--weights evaluation) each by itself. --profile prints which kernels a step consists of, to stderr.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from r1train.errors import R1TrainError, exit_code
from r1train.log.atomic import write_atomically

if TYPE_CHECKING:
    from r1train.data.prompts import Prompt

WARM_UP = 1
CHECK_EVERY = 8  # steps between looks at which samples ended, as NativeEngine's own number on a GPU
SKIPPED_ROUNDS, PROFILED_ROUNDS = 4, 2  # of so many steps each


class AnyText:
    """The tokenizer of random prompts: no response ends early, and nobody reads the text."""

    bos_id, eos_id, pad_id = 0, -1, 0

    def decode(self, ids: list[int]) -> str:
        return str(len(ids))


def measure(generate: Callable[[int], int], repetitions: int) -> dict:
    """generate(number of the repetition) -> tokens. Tokens per second: median, lowest and highest; seconds: median."""
    seconds, rates = [], []
    for repetition in range(WARM_UP + repetitions):
        started = time.perf_counter()
        tokens = generate(repetition)
        seconds.append(time.perf_counter() - started)
        rates.append(tokens / seconds[-1])
    kept = rates[WARM_UP:]
    return {
        "median": statistics.median(kept),
        "low": min(kept),
        "high": max(kept),
        "seconds": statistics.median(seconds[WARM_UP:]),
        "first_seconds": seconds[0],
        "tokens": tokens,
    }


def native(args: argparse.Namespace, *, cuda_graphs: bool) -> dict:
    """The native engine on the run's newest checkpoint, or on initial weights."""
    import torch  # noqa: PLC0415 - the parent needs none of these

    from r1train.config.load import load_config  # noqa: PLC0415
    from r1train.dist.init import init_processes, select_device  # noqa: PLC0415

    one = ["parallel=single", "cluster.processes_per_node=1", "stage=evaluate", f"stage.init_from={args.run}"]
    cfg = load_config([*args.overrides, *one], check_files=False)
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    from r1train.dist.seed import seed_all  # noqa: PLC0415 - after the CPU stand-ins
    from r1train.model.build import build_model  # noqa: PLC0415
    from r1train.rollout.engine import SamplingParams  # noqa: PLC0415
    from r1train.rollout.native import NativeEngine  # noqa: PLC0415
    from r1train.train.checkpoint import latest_checkpoint, load_module  # noqa: PLC0415
    from r1train.train.setup import wrap_chunks  # noqa: PLC0415

    seed_all(cfg.seed)
    module = build_model(cfg, device)
    if args.run is not None:
        load_module(module, latest_checkpoint(args.run))
    if args.weights == "training":
        wrap_chunks(cfg, [module])
    tokenizer, prompts = work(args, cfg.model.vocab_size)
    options = {"record_routes": args.routes, "cuda_graphs": cuda_graphs, "check_every": CHECK_EVERY}
    engine = NativeEngine(module, tokenizer, batch_size=args.rows, **options)

    def generate(repetition: int, watcher: "Rounds | None" = None) -> int:
        params = SamplingParams(
            samples_per_prompt=args.samples,
            temperature=args.temperature,
            top_p=args.top_p,
            max_response_tokens=args.tokens,
            seed=0,
            name=f"bench/{repetition}",
        )
        groups = engine.generate(prompts, params, policy_version=0, watcher=watcher)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return sum(len(sample.tokens) for group in groups for sample in group.samples)

    found = measure(generate, args.repetitions)
    if args.profile and device.type == "cuda":
        print_kernels(lambda watcher: generate(args.repetitions, watcher))
    gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    name = torch.cuda.get_device_name() if gib else "cpu"
    return found | {"steps": type(engine.steps).__name__, "device": name, "peak_gib": gib}


class Rounds:
    """Tells a profiler after each round of steps, when the device has finished them (the engine has just looked)."""

    def __init__(self, advance: Callable[[], None]):
        self._advance = advance

    def finished(self, *_: object) -> None:
        pass

    def poll(self) -> None:
        self._advance()


def print_kernels(generate: "Callable[[Rounds], int]") -> None:
    """Kernels of some decode steps in the middle of a call: runs and microseconds per step, the longest first."""
    from torch.profiler import ProfilerActivity, profile, schedule  # noqa: PLC0415

    rounds = schedule(wait=SKIPPED_ROUNDS - 1, warmup=1, active=PROFILED_ROUNDS, repeat=1)
    with profile(activities=[ProfilerActivity.CUDA], schedule=rounds) as profiler:
        generate(Rounds(profiler.step))
    steps = PROFILED_ROUNDS * CHECK_EVERY
    kernels = [event for event in profiler.key_averages() if not event.key.startswith("ProfilerStep")]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    lines = [f"{one.self_device_time_total / steps:9.1f} {one.count / steps:7.1f}  {one.key[:140]}" for one in kernels]
    runs, busy = sum(one.count for one in kernels) / steps, sum(one.self_device_time_total for one in kernels) / steps
    head = f"{runs:.0f} kernels and {busy:.0f} us of kernels a step ({steps} steps)\n  us/step runs/step"
    print("\n".join([head, *lines]), file=sys.stderr)


def work(args: argparse.Namespace, vocab_size: int) -> "tuple[object, list[Prompt]]":
    """Tokenizer and prompts: of the run's data, or random ones."""
    import numpy as np  # noqa: PLC0415

    from r1train.data.prompts import Prompt, PromptSet  # noqa: PLC0415
    from r1train.data.tokenizer import Tokenizer  # noqa: PLC0415

    if args.run is None:
        ids = np.random.default_rng(0).integers(16, vocab_size, (args.prompts, args.prompt_tokens)).tolist()
        return AnyText(), [Prompt(f"p{place}", "bench", "", "", {}, tuple(one)) for place, one in enumerate(ids)]
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    prompts = PromptSet(args.data / "prompts" / "train.jsonl", tokenizer, seed=0).take(0, args.prompts)
    if not args.natural:
        tokenizer.roles = replace(tokenizer.roles, eos_id=-1)
    return tokenizer, prompts


def transformers(args: argparse.Namespace) -> dict:
    """transformers' generate with its cache, in left-padded batches of --rows sequences."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from r1train.data.prompts import PromptSet  # noqa: PLC0415
    from r1train.data.tokenizer import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.load(args.data / "tokenizer")
    prompts = PromptSet(args.data / "prompts" / "train.jsonl", tokenizer, seed=0).take(0, args.prompts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.export, dtype="auto").to(device).eval()
    rows = [prompt.token_ids for prompt in prompts for _ in range(args.samples)]
    limits = {} if args.natural else {"min_new_tokens": args.tokens}

    def generate(repetition: int) -> int:
        torch.manual_seed(repetition)
        made = 0
        for start in range(0, len(rows), args.rows):
            part = rows[start : start + args.rows]
            longest = max(map(len, part))
            tokens = torch.tensor([[tokenizer.pad_id] * (longest - len(ids)) + list(ids) for ids in part])
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in part])
            out = model.generate(
                tokens.to(device),
                attention_mask=mask.to(device),
                do_sample=True,
                max_new_tokens=args.tokens,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.pad_id,
                **limits,
            )
            made += int((out[:, longest:] != tokenizer.pad_id).sum())
        return made

    return measure(generate, args.repetitions)


ENGINES = {
    "graphs": partial(native, cuda_graphs=True),
    "launches": partial(native, cuda_graphs=False),
    "transformers": transformers,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder with a checkpoint; default: initial weights")
    parser.add_argument("--data", type=Path, help="prepared data; default: the folder data beside the run")
    parser.add_argument("--export", type=Path, help="the same weights for transformers")
    parser.add_argument("--rows", type=int, default=64, help="sequences at a time")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=40, help="of each random prompt")
    parser.add_argument("--samples", type=int, default=4, help="per prompt")
    parser.add_argument("--tokens", type=int, default=40, help="of each response; the budget with --natural")
    parser.add_argument("--natural", action="store_true", help="responses end at <|eos|>")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--routes", action="store_true", help="record experts, as RL does")
    parser.add_argument("--weights", choices=("training", "evaluation"), default="training", help="where they lie")
    parser.add_argument("--profile", action="store_true", help="print the kernels of a step, on a GPU")
    parser.add_argument("--repetitions", type=int, default=5, help="measured ones; one more comes first")
    parser.add_argument("--overrides", nargs="*", default=["experiment=tiny"], help="Hydra overrides: the model")
    parser.add_argument("--out", type=Path, help="file for one JSON object per engine")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), help="default: all that there is something for")
    parser.add_argument("--engine", choices=list(ENGINES), help="this one alone, in this process, as JSON")
    args = parser.parse_args()
    if args.run is not None:
        args.data = args.data or args.run.parent / "data"
    return args


def run(args: argparse.Namespace) -> None:
    if args.engine:
        asked = {
            name: vars(args)[name] for name in ("rows", "prompts", "samples", "prompt_tokens", "weights", "routes")
        }
        print(json.dumps({"engine": args.engine, **asked, **ENGINES[args.engine](args)}))
        return
    rows = []
    for engine in args.engines or [name for name in ENGINES if args.export or name != "transformers"]:
        command = [sys.executable, "-W", "ignore", *sys.argv, "--engine", engine]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise R1TrainError(f"{engine} ended with {done.returncode}; what it said is above")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        spread = f"({row['low']:,.0f} to {row['high']:,.0f})"
        print(f"{engine:13} {row['median']:10,.0f} {spread} tokens/s   {row['tokens']:,} tokens x {args.repetitions}")
        print(json.dumps(row))
    if args.out:
        write_atomically(args.out, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(exit_code(partial(run, parse())))
