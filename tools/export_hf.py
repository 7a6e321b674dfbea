"""Checkpoint -> Hugging Face folder that transformers and vLLM load as it is.

python tools/export_hf.py --ckpt RUN --out DIR [--dtype bf16|fp32|fp16|fp8] [--ema] [--tokenizer DIR] [--verify]
python tools/export_hf.py --dry-run --model conf/model/deepseek_v3.yaml --dtype fp8 --out DIR
docs/conversion.md says more.
"""

import argparse
import sys
from pathlib import Path

from r1train.convert.export_plan import model_of_run, read_model
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.import_plan import Options
from r1train.convert.report import DTYPES, export_estimate, parse_size
from r1train.convert.torch_dist import step_folder
from r1train.errors import CheckpointError, exit_code


def run(args: argparse.Namespace) -> None:
    model = read_model(args.model) if args.model else None
    if args.dry_run:
        if model is None:
            if args.ckpt is None:
                raise CheckpointError("--dry-run needs to know the model. Fix: --ckpt RUN or --model FILE")
            model = model_of_run(step_folder(args.ckpt).parent.parent)
        limits = Options(max_memory_bytes=args.max_memory, workers=args.workers)
        print(export_estimate(model, args.out, dtype=DTYPES[args.dtype], limits=limits))
        return
    if args.ckpt is None:
        raise CheckpointError("--ckpt is missing. Fix: name a run folder or a step folder")
    options = ExportOptions(
        dtype=DTYPES[args.dtype],
        max_shard_bytes=args.max_shard_size,
        max_memory_bytes=args.max_memory,
        workers=args.workers,
        verify=args.verify,
        use_ema=args.ema,
    )
    done = export_checkpoint(args.ckpt, args.out, options, model=model, tokenizer=args.tokenizer)
    print(f"exported to {done.folder}: {done.tensors:,} tensors, {done.bytes / 1e9:.2f} GB")
    if done.quantisation_error is not None:
        print(f"FP8: relative error {done.quantisation_error:.4f} (root of squared error over squared weights)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="run folder (its newest checkpoint) or step folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="fp8: DeepSeek's 128 x 128 blocks")
    parser.add_argument("--ema", action="store_true", help="the weights' average (optim.ema_decay) instead of them")
    parser.add_argument("--model", type=Path, help="as in conf/model, where the run folder does not say")
    parser.add_argument("--tokenizer", type=Path, help="folder, ours or Hugging Face's; default: what was imported")
    parser.add_argument("--max-shard-size", type=parse_size, default="5G", help="of one file")
    parser.add_argument("--max-memory", type=parse_size, default="8G", help="of all processes together, e.g. 4G")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the work")
    parser.add_argument("--verify", action="store_true", help="read everything again and compare with the checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="estimate only; --model alone is enough")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
