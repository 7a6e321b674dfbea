"""Compare greedy answers that an evaluation stored with transformers' greedy answers: prompts, tokens, texts, score.

python tools/compare_greedy.py --run RUN --hf DIR [--limit 100] [--rows 25] [--device cuda]
RUN: of a stage `evaluate` with eval.temperature=0 in fp32. DIR: the Hugging Face folder of the same weights. Ends with
1 where transformers, in fp32, prefers another token by more than --tie.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema_rl import RewardConfig
from r1train.config.validate import build
from r1train.errors import ConfigError, R1TrainError, exit_code
from r1train.eval.store import HELDOUT_SAMPLES
from r1train.reward.score import Scorer
from r1train.rollout.types import Group, group_from_row, read_rows


class Disagreement(R1TrainError):
    """Both sides differ by more than rounding."""

    exit_code = 1


@dataclass(frozen=True)
class Compared:
    """One question. gap: where the answers part, how much transformers prefers its own token (difference of logits);
    None where they are the same tokens.
    """

    group: Group
    same_prompt: bool
    text: str
    place: int | None
    gap: float | None


@torch.no_grad()
def greedy(prompts: list[list[int]], budgets: list[int], model: PreTrainedModel, eos: int) -> list[list[int]]:
    """Transformers' answers to prompts that are padded to one length, each of at most its budget of tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[eos] * (longest - len(one)) + one for one in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=model.device)
    made = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max(budgets), pad_token_id=eos)
    answers = [one[:budget] for one, budget in zip(made[:, longest:].tolist(), budgets, strict=True)]
    return [one[: one.index(eos) + 1] if eos in one else one for one in answers]


@torch.no_grad()
def compare(groups: list[Group], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Compared]:
    """Transformers' answers to the same questions, as long as the stored ones."""
    messages = [[{"role": "user", "content": group.prompt.question}] for group in groups]
    prompts = [
        list(tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False)) for one in messages
    ]
    stored = [group.samples[0].tokens.tolist() for group in groups]
    # What ends generation; a tokenizer's own end token can be another.
    ends = model.generation_config.eos_token_id
    eos = ends[0] if isinstance(ends, list) else ends
    made = greedy(prompts, list(map(len, stored)), model, eos)
    compared = []
    for group, prompt, ours, theirs in zip(groups, prompts, stored, made, strict=True):
        ended = theirs[-1] == eos
        text = tokenizer.decode(theirs[: len(theirs) - int(ended)], clean_up_tokenization_spaces=False)
        same_prompt = tuple(prompt) == group.prompt.token_ids
        place = next((at for at, pair in enumerate(itertools.zip_longest(ours, theirs)) if pair[0] != pair[1]), None)
        gap = None
        if place is not None:
            logits = model(torch.tensor([prompt + ours[:place]], device=model.device)).logits[0, -1].float()
            gap = (logits.max() - logits[ours[place]]).item()
        compared.append(Compared(group, same_prompt, text, place, gap))
    return compared


def score(items: list[Compared], reward: RewardConfig) -> tuple[list[float], list[float]]:
    """Accuracy of our texts and of theirs, by the rules of the run."""
    with Scorer(reward) as scorer:
        ours = scorer.score([(item.group.prompt, item.group.samples[0].text) for item in items])
        theirs = scorer.score([(item.group.prompt, item.text) for item in items])
    return [one.parts.get("accuracy", 0.0) for one in ours], [one.parts.get("accuracy", 0.0) for one in theirs]


def run(args: argparse.Namespace) -> None:
    tree = yaml.safe_load((args.run / "resolved.yaml").read_text(encoding="utf-8"))
    reward, problems = build(tree["reward"], RewardConfig)
    if reward is None:
        raise ConfigError(problems)
    rows = itertools.islice(read_rows(args.run / "eval" / HELDOUT_SAMPLES), args.limit)
    groups = [group_from_row(row) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    parts = [groups[start : start + args.rows] for start in range(0, len(groups), args.rows)]
    items = [item for part in parts for item in compare(part, model, tokenizer)]
    ours, theirs = score(items, reward)
    parted = [item for item in items if item.gap is not None]
    same_texts = sum(item.text == item.group.samples[0].text for item in items)
    print(f"prompts: {sum(item.same_prompt for item in items)} of {len(items)} with the same token ids")
    print(f"answers: {len(items) - len(parted)} of {len(items)} with the same token ids, {same_texts} the same text")
    for item in parted:
        print(
            f"  {item.group.prompt.id}: parts at token {item.place}, where transformers is {item.gap:.2g} for its own"
        )
    print(f"correct: ours {sum(ours):g}, transformers {sum(theirs):g} of {len(items)}")
    beyond = [item.group.prompt.id for item in parted if item.gap is not None and item.gap > args.tie]
    if beyond or not all(item.same_prompt for item in items):
        what = f"{args.run} and {args.hf} differ by more than rounding"
        raise Disagreement(
            f"{what} ({', '.join(beyond) or 'prompts'}). Fix: same weights, fp32 and greedy on both sides"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of the evaluation")
    parser.add_argument("--hf", type=Path, required=True, help="Hugging Face folder of the same weights")
    parser.add_argument("--limit", type=int, default=100, help="at most so many questions")
    parser.add_argument("--rows", type=int, default=1, help="answers that transformers generates at a time")
    parser.add_argument("--device", default="cpu", help="for transformers")
    parser.add_argument("--tie", type=float, default=1e-3, help="difference of logits that rounding explains")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
