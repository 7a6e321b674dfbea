"""Tokens per second of generation: the native engine, and transformers' generate on the exported weights.

python tools/bench_rollout.py --run runs/tiny/cold_start --rows 64 --prompts 32 --samples 4 --tokens 40 \
    [--export DIR] [--overrides experiment=tiny ...]

Every response has exactly --tokens tokens (with --natural they end when they end), the same prompts for every engine.
One process; each engine in a process of its own. --export: a folder of tools/export_hf.py, for transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from r1train.errors import R1TrainError

WARM_UP, MEASURED = 1, 5


def measure(generate: Callable[[int], int]) -> dict:
    """generate(number of the repetition) -> tokens. Tokens per second: median, lowest and highest."""
    rates = []
    for repetition in range(WARM_UP + MEASURED):
        started = time.perf_counter()
        tokens = generate(repetition)
        rates.append(tokens / (time.perf_counter() - started))
    kept = rates[WARM_UP:]
    return {"median": statistics.median(kept), "low": min(kept), "high": max(kept), "tokens": tokens}


def native(args: argparse.Namespace) -> dict:
    """The native engine on the run's newest checkpoint."""
    import torch  # noqa: PLC0415 - the parent needs none of these

    from r1train.config.load import load_config  # noqa: PLC0415
    from r1train.data.prompts import PromptSet  # noqa: PLC0415
    from r1train.data.tokenizer import Tokenizer  # noqa: PLC0415
    from r1train.dist.init import init_processes, select_device  # noqa: PLC0415

    one = ["parallel=single", "cluster.processes_per_node=1", "stage=evaluate", f"stage.init_from={args.run}"]
    cfg = load_config([*args.overrides, *one], check_files=False)
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    from r1train.model.build import build_model  # noqa: PLC0415 - after the CPU stand-ins
    from r1train.rollout.engine import SamplingParams  # noqa: PLC0415
    from r1train.rollout.native import NativeEngine  # noqa: PLC0415
    from r1train.train.checkpoint import latest_checkpoint, load_module  # noqa: PLC0415

    module = build_model(cfg, device)
    load_module(module, latest_checkpoint(args.run))
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    prompts = PromptSet(args.data / "prompts" / "train.jsonl", tokenizer, seed=0).take(0, args.prompts)
    if not args.natural:
        tokenizer.eos_id = -1
    engine = NativeEngine(module, tokenizer, batch_size=args.rows)

    def generate(repetition: int) -> int:
        params = SamplingParams(
            samples_per_prompt=args.samples,
            temperature=1.0,
            top_p=1.0,
            max_response_tokens=args.tokens,
            seed=0,
            name=f"bench/{repetition}",
        )
        groups = engine.generate(prompts, params, policy_version=0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return sum(len(sample.tokens) for group in groups for sample in group.samples)

    return measure(generate)


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

    return measure(generate)


ENGINES = {"native": native, "transformers": transformers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with a checkpoint")
    parser.add_argument("--data", type=Path, help="prepared data; default: the folder data beside the run")
    parser.add_argument("--export", type=Path, help="the same weights for transformers")
    parser.add_argument("--rows", type=int, default=64, help="sequences at a time")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4, help="per prompt")
    parser.add_argument("--tokens", type=int, default=40, help="of each response; the budget with --natural")
    parser.add_argument("--natural", action="store_true", help="responses end at <|eos|>")
    parser.add_argument("--overrides", nargs="*", default=["experiment=tiny"], help="Hydra overrides: the model")
    parser.add_argument("--engine", choices=list(ENGINES), help="this one alone, as JSON")
    args = parser.parse_args()
    args.data = args.data or args.run.parent / "data"
    try:
        if args.engine:
            print(json.dumps(ENGINES[args.engine](args)))
            return 0
    except R1TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for engine in ENGINES if args.export else ["native"]:
        command = [sys.executable, "-W", "ignore", *sys.argv, "--engine", engine]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        row = json.loads(done.stdout.splitlines()[-1])
        spread = f"({row['low']:,.0f} to {row['high']:,.0f})"
        print(f"{engine:13} {row['median']:10,.0f} {spread} tokens/s   {row['tokens']:,} tokens x {MEASURED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
