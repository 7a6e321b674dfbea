"""Speed of tools/tokenize_corpus.py against the tokenizers library's own batch call, on the same rows and cores.

python tools/bench_tokenise.py --input text.jsonl.gz --tokenizer DIR [--workers 2] [--rounds 5] [--max-mb 64]

Two sides take turns, so that a busy machine slows both, each in a process of its own. library: encode_batch on as many
threads as there are workers, on texts that wait in memory. tool: the whole of it, which also starts its workers, reads
and parses the rows, writes .bin and .idx, and joins them. Per round: wall-clock seconds, and CPU seconds of the process
and its children. The ratio is library / tool of the same round: above 1 the tool is faster. Memory is the kernel's own
high-water mark of a process (Linux): of the library's, of the tool's reading one, and of its largest worker.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import tokenizers

from r1train.data.corpus_build import BuildPlan, build_corpus
from r1train.data.corpus_part import PartOptions
from r1train.data.rows import PART_BYTES, read_parts, row_text
from r1train.data.tokenizer import TOKENIZER_FILE
from r1train.errors import DataError, R1TrainError, exit_code

SIDES = ("library", "tool")


def write_rows(args: argparse.Namespace, path: Path) -> int:
    """The first --max-mb of the input's documents as plain jsonl; returns their bytes. Raises DataError."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for part in read_parts(args.input, args.text_field, PART_BYTES):
            for row in part.rows:
                text, problem = row_text(row, args.text_field)
                if problem or size >= args.max_mb * 2**20:
                    continue
                file.write(json.dumps({"text": text}) + "\n")
                size += len(text.encode())
            if size >= args.max_mb * 2**20:
                break
    if not size:
        raise DataError(f"{args.input}: no documents. Fix: another --input or --text-field")
    return size


def peak_mib(pid: int) -> float:
    """The most memory a living process ever had, pages it shares with others included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


class Memory:
    """own: of this process; worker: of the largest of its grandchildren, which a server forks. MiB."""

    def __init__(self) -> None:
        self.own, self.worker = 0.0, 0.0

    def look(self) -> None:
        self.own = peak_mib(os.getpid())
        workers = [one.pid for server in psutil.Process().children() for one in server.children()]
        self.worker = max([self.worker, *map(peak_mib, workers)])


def library(rows: Path, args: argparse.Namespace, memory: Memory) -> Callable[[], int]:
    """Its batch call on all texts at once; texts and tokenizer are loaded before the clock starts."""
    bpe = tokenizers.Tokenizer.from_file(str(args.tokenizer / TOKENIZER_FILE))
    texts = [json.loads(line)["text"] for line in rows.open(encoding="utf-8")]

    def work() -> int:
        tokens = sum(len(one) for one in bpe.encode_batch(texts, add_special_tokens=False)) + len(texts)
        memory.look()
        return tokens

    return work


def tool(rows: Path, args: argparse.Namespace, memory: Memory) -> Callable[[], int]:
    """tokenize_corpus.py's; memory is looked at after every part, while its workers live."""
    plan = BuildPlan((str(rows),), rows.with_name("out") / "corpus", PartOptions(tokenizer=str(args.tokenizer)))
    return lambda: (
        build_corpus(plan, workers=args.workers, max_bad_rows=0, on_part=lambda *_: memory.look()).train.tokens
    )


def cpu_seconds() -> float:
    """Of this process, its children that live, and theirs that have ended: the workers' server counts the workers."""
    here = psutil.Process()
    used = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in used)


def one_side(rows: Path, args: argparse.Namespace) -> dict[str, float]:
    memory = Memory()
    work = {"library": library, "tool": tool}[args.side](rows, args, memory)
    cpu, started = cpu_seconds(), time.perf_counter()
    tokens = work()
    seconds = {"wall": time.perf_counter() - started, "cpu": cpu_seconds() - cpu}
    return {**seconds, "tokens": tokens, "own": memory.own, "worker": memory.worker}


def run_side(side: str, rows: Path, args: argparse.Namespace) -> dict[str, float]:
    """one_side in a process of its own."""
    options = ["--tokenizer", args.tokenizer, "--workers", args.workers, "--input", rows, "--side", side]
    threads = {"RAYON_NUM_THREADS": str(args.workers), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-W", "ignore", __file__, *map(str, options)]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise R1TrainError(f"{side} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        size = write_rows(args, rows)
        rounds = []
        for number in range(args.rounds):
            found = {}
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                found[side] = run_side(side, rows, args)
                for path in (Path(scratch) / "out").glob("corpus*"):
                    path.unlink()
            rounds.append(found)
    tokens = {side: rounds[0][side]["tokens"] for side in SIDES}
    if len(set(tokens.values())) > 1:
        raise DataError(f"the sides disagree about the number of tokens: {tokens}")
    print(f"{size / 2**20:.0f} MiB, {tokens['tool']:,.0f} tokens, {args.workers} workers, {args.rounds} rounds")
    for key, name in (("wall", "wall s"), ("cpu", "CPU s")):
        for side in SIDES:
            print(f"{side:8} {name}: {summary([one[side][key] for one in rounds])}")
        print(f"ratio    {name}: {summary([one['library'][key] / one['tool'][key] for one in rounds])}")
    for name, side, key in (("library", "library", "own"), ("tool", "tool", "own"), ("worker", "tool", "worker")):
        print(f"{name:8} peak MiB: {summary([one[side][key] for one in rounds])}")


def run(args: argparse.Namespace) -> None:
    if args.side:
        print(json.dumps(one_side(Path(args.input[0]), args)))
    else:
        compare(args)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="as for tools/tokenize_corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, and threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-mb", type=int, default=64, help="MiB of text to take")
    parser.add_argument("--side", choices=SIDES, help="this one alone, once, as JSON; --input is plain jsonl")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
