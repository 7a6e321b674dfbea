"""Print stored rollouts or evaluation samples: each prompt with its samples, and their scores where they were stored.

python tools/show_rollouts.py RUN/rollouts/step_00000010.jsonl [--limit 3]
python tools/show_rollouts.py RUN/eval/samples_gsm8k_test.jsonl --wrong
"""

import argparse
import itertools
import sys
from pathlib import Path

from r1train.errors import exit_code
from r1train.rollout.types import Sample, group_from_row, read_rows


def reward_text(score: dict) -> str:
    """The reward as stored by Score.to_row; of an evaluation with the answer that was found."""
    if score["error"] is not None:
        return f"not graded: {score['error']}"
    parts = ", ".join(f"{name} {value:g}" for name, value in score["parts"].items())
    found = f", answer {score['answer']!r}" if "answer" in score else ""
    return f"reward {score['value']:g} ({parts}){found}"


def describe(sample: Sample) -> str:
    mean = f"{sample.logprobs.mean():.4f}" if len(sample.logprobs) else "-"
    facts = f"{len(sample.tokens)} tokens, {sample.finish}, policy {sample.policy_version}, mean logprob {mean}"
    return f"--- sample {sample.index}: {facts}"


def show(row: dict) -> None:
    group = group_from_row(row)
    prompt = group.prompt
    print(f"=== {prompt.id} ({prompt.task}): {prompt.question}   reference: {prompt.answer}")
    scores = row.get("scores", [])
    for sample, score in itertools.zip_longest(group.samples, scores):
        print(describe(sample) + (f", {reward_text(score)}" if score else ""))
        print(sample.text)


def all_right(row: dict) -> bool:
    """Whether every sample of a row was graded and is correct; rows without stored scores are not known to be."""
    scores = row.get("scores", [])
    return bool(scores) and all(one["error"] is None and one["parts"].get("accuracy") == 1.0 for one in scores)


def run(args: argparse.Namespace) -> None:
    rows = (row for row in read_rows(args.path) if not (args.wrong and all_right(row)))
    for row in itertools.islice(rows, args.limit):
        show(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="rollout file (.jsonl)")
    parser.add_argument("--limit", type=int, help="at most this many prompts")
    parser.add_argument("--wrong", action="store_true", help="only prompts with a sample that is not correct")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
