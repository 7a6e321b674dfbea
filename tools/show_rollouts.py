"""Print stored rollouts: each prompt with its samples, and their rewards where the stage stored them.

python tools/show_rollouts.py RUN/rollouts/step_00000010.jsonl [--limit 3]
"""

import argparse
import itertools
import sys
from pathlib import Path

from r1train.errors import R1TrainError
from r1train.rollout.types import Sample, group_from_row, read_rows


def reward_text(score: dict) -> str:
    """The reward as stored by Score.to_row."""
    if score["error"] is not None:
        return f"not graded: {score['error']}"
    parts = ", ".join(f"{name} {value:g}" for name, value in score["parts"].items())
    return f"reward {score['value']:g} ({parts})"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="rollout file (.jsonl)")
    parser.add_argument("--limit", type=int, help="at most this many prompts")
    args = parser.parse_args()
    try:
        for row in itertools.islice(read_rows(args.path), args.limit):
            show(row)
    except R1TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
