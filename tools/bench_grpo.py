"""Speed of a whole GRPO step: ours with either engine, TRL's GRPOTrainer with either of its, and vLLM alone.

python tools/bench_grpo.py --run runs/smollm2_grpo/base --hf DIR --data runs/smollm2_grpo/data --out grpo.jsonl \
    [--systems native vllm raw-vllm trl trl-vllm] [--prompts 16] [--samples 16] [--tokens 256] [--steps 5] \
    [--overrides experiment=smollm2_grpo ...]

RUN: run folder of the checkpoint; DIR: the same weights for Hugging Face. Each system in a process of its own, one
after the other: the same prompts in every step, the same number of samples, each of exactly --tokens tokens whatever
they say, one update. Ours samples, grades, stores, computes old log-probabilities and updates with the stage's own
functions; docs/performance.md says what TRL does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# A tool's own folder is on the path when it runs as a script.
from bench_grpo_peers import Times, Work, raw_vllm, trl

from r1train.config.load import load_config
from r1train.data.prompts import Prompt, PromptSet
from r1train.data.tokenizer import Tokenizer
from r1train.dist.init import select_device
from r1train.errors import R1TrainError, exit_code
from r1train.log.atomic import write_atomically

WARM_UP = 2
PACKAGES = ("torch", "transformers", "trl", "vllm", "megatron-core")


def bench_prompts(args: argparse.Namespace) -> list[Prompt]:
    """The first prompts of the prepared data in an order that is always the same."""
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    prompts = PromptSet(args.data / "prompts" / "train.jsonl", tokenizer, seed=0).take(0, args.prompts)
    if len({prompt.id for prompt in prompts}) < args.prompts:
        raise R1TrainError(f"{args.data} has fewer than {args.prompts} prompts. Fix: a smaller --prompts")
    return prompts


def our_overrides(args: argparse.Namespace, prompts: list[Prompt], *, engine: str, root: Path) -> list[str]:
    """The stage's config: one update per rollout, no reference policy, all groups kept. --overrides win."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    return [
        "stage=grpo",
        "step=bench",
        f"root={root}",
        f"data.dir={args.data}",
        f"stage.init_from={args.run}",
        f"stage.steps={WARM_UP + args.steps}",
        f"stage.prompts_per_step={args.prompts}",
        f"stage.samples_per_prompt={args.samples}",
        "stage.minibatches_per_step=1",
        f"stage.seq_length={args.row_tokens}",
        f"lr.learning_rate.start={args.learning_rate}",
        f"rollout.engine={engine}",
        f"rollout.temperature={args.temperature}",
        "rollout.top_p=1.0",
        f"rollout.max_prompt_tokens={longest}",
        f"rollout.max_response_tokens={args.tokens}",
        f"rollout.batch_size={args.prompts * args.samples}",
        *([f"rollout.gpu_memory_share={args.gpu_memory_share}"] if engine == "vllm" else []),
        "rl.kl_coef=0",
        "rl.record_routing=false",
        "rl.sampling={keep: all, oversample: 1.0, max_tries: 1}",
        "evaluate_after=false",
        *args.overrides,
    ]


def ours(args: argparse.Namespace, prompts: list[Prompt], *, engine: str, root: Path) -> Times:
    """Steps of the stage grpo."""
    cfg = load_config(our_overrides(args, prompts, engine=engine, root=root))
    select_device(cfg.cluster)
    from bench_grpo_ours import grpo_steps  # noqa: PLC0415 - megatron-core has to see select_device's stand-ins

    return grpo_steps(cfg, prompts)


def measure(args: argparse.Namespace, system: str, scratch: Path) -> dict[str, Any]:
    """One row of the report."""
    prompts = bench_prompts(args)
    work = Work(
        hf=args.hf,
        prompts=prompts,
        samples=args.samples,
        tokens=args.tokens,
        steps=WARM_UP + args.steps,
        learning_rate=args.learning_rate,
        temperature=args.temperature,
        micro_batch=args.micro_batch,
        dtype=args.trl_dtype,
        gpu_memory_share=args.gpu_memory_share,
    )
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    systems: dict[str, Callable[[], Times]] = {
        "native": lambda: ours(args, prompts, engine="native", root=scratch),
        "vllm": lambda: ours(args, prompts, engine="vllm", root=scratch),
        "raw-vllm": lambda: raw_vllm(work, logprobs=True),
        "raw-vllm-no-logprobs": lambda: raw_vllm(work, logprobs=False),
        "trl": lambda: trl(work, tokenizer, scratch=scratch, use_vllm=False),
        "trl-vllm": lambda: trl(work, tokenizer, scratch=scratch, use_vllm=True),
    }
    times = systems[system]()
    return {"system": system, **summary(times, tokens=work.sequences * work.tokens), **surroundings()}


def summary(times: Times, *, tokens: int) -> dict[str, Any]:
    """After the warm-up, of every part: median, lowest and highest seconds; tokens/s of a rollout and of generation."""
    measured = {name: values[WARM_UP:] for name, values in times.parts.items()}
    row: dict[str, Any] = {f"{name}_s": spread(values) for name, values in measured.items()}
    for name in ("rollout", "generate"):
        if name in measured:
            row[f"{name}_tokens_per_s"] = spread([tokens / value for value in measured[name]])
    return {**row, "tokens": tokens, "steps": max(map(len, measured.values()))}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def surroundings() -> dict[str, Any]:
    """Packages that are there, the device, and the most memory that PyTorch had of it."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if not torch.cuda.is_available():
        return {"packages": found, "device": "cpu", "peak_memory_gib": None}
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"packages": found, "device": torch.cuda.get_device_name(), "peak_memory_gib": peak}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines in Markdown: seconds of a step and its parts, and rates, each a median with its spread."""
    columns = ("step_s", "rollout_s", "push_s", "train_s", "rollout_tokens_per_s", "generate_tokens_per_s")
    lines = [f"| system | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = []
        for name in columns:
            digits = 0 if name.endswith("tokens_per_s") else 3
            one = row.get(name)
            cells.append(
                ""
                if one is None
                else f"{one['median']:,.{digits}f} ({one['low']:,.{digits}f} to {one['high']:,.{digits}f})"
            )
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    return lines


def run(args: argparse.Namespace) -> None:
    if args.system:
        with tempfile.TemporaryDirectory(prefix="bench_grpo_") as scratch:
            print(json.dumps(measure(args, args.system, Path(scratch))), flush=True)
        return
    rows, failed = [], []
    for system in args.systems:
        command = [sys.executable, "-W", "ignore", *sys.argv, "--system", system]
        # It keeps our own start-up short, and would keep vLLM from its default, which compiles.
        kept = {name: value for name, value in os.environ.items() if name != "TORCH_COMPILE_DISABLE"}
        environment = kept if "vllm" in system else None
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
        if done.returncode:
            failed.append(system)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{system}: {rows[-1]}", file=sys.stderr, flush=True)
        if args.out:
            write_atomically(args.out, "".join(json.dumps(row) + "\n" for row in rows))
    print("\n".join(table(rows)))
    if failed:
        raise R1TrainError(f"no numbers of {', '.join(failed)}: see the messages above. Fix: what they name")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with a checkpoint, for ours")
    parser.add_argument("--hf", type=Path, required=True, help="the same weights as a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="prepared data")
    parser.add_argument("--systems", nargs="+", default=["native", "vllm", "raw-vllm", "trl", "trl-vllm"])
    parser.add_argument("--prompts", type=int, default=16, help="of each step")
    parser.add_argument("--samples", type=int, default=16, help="per prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of each response")
    parser.add_argument("--steps", type=int, default=5, help=f"measured, after {WARM_UP}")
    parser.add_argument("--row-tokens", type=int, default=32768, help="ours: tokens of a packed row")
    parser.add_argument("--micro-batch", type=int, default=32, help="TRL: sequences of a forward")
    parser.add_argument("--trl-dtype", default="float32", help="TRL: of the weights; computed in bf16 on a GPU")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--gpu-memory-share", type=float, default=0.4, help="vLLM's, wherever it is used")
    parser.add_argument(
        "--overrides", nargs="*", default=["experiment=smollm2_grpo"], help="Hydra overrides: the model"
    )
    parser.add_argument("--out", type=Path, help="rows as JSON lines")
    parser.add_argument("--system", help=argparse.SUPPRESS)  # one alone, in a process of its own
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
