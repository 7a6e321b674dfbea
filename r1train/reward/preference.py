"""Reward models as parts of the reward: frozen, on the same ranks as the policy, asked for whole rollouts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.config.schema_reward import PreferenceConfig
from r1train.data.batch import pack
from r1train.data.chat import Sample, chat_sample
from r1train.data.packing import best_fit
from r1train.data.preferences import scored_text
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.comm import of_rank
from r1train.dist.init import Device
from r1train.model.build import build_model
from r1train.model.gpt import R1Model
from r1train.model.value_head import add_value_head, value_head
from r1train.reward.base import Score
from r1train.reward.reward_model import ScoreObjective, score_positions
from r1train.train.batches import packed_micro_batches
from r1train.train.checkpoint import latest_checkpoint, load_module
from r1train.train.forward import forward_only


@dataclass(frozen=True)
class Packing:
    """How responses become rows for a reward model."""

    tokenizer: Tokenizer
    seq_length: int
    device: torch.device


def score_samples(model: R1Model, samples: list[Sample], packing: Packing) -> list[float]:
    """The value at the last token of each sample, in order; collective, ranks may bring different numbers, also none.

    A sample beyond seq_length has a row of its own. Every pipeline stage gets the scores.
    """
    longest = max([packing.seq_length, *(len(sample.tokens) for sample in samples)])
    bins = best_fit([len(sample.tokens) for sample in samples], longest, names=[sample.id for sample in samples])
    pad_id = packing.tokenizer.pad_id
    rows = [
        pack(
            [samples[item] for item in one],
            seq_length=max(packing.seq_length, sum(len(samples[item].tokens) for item in one)),
            pad_id=pad_id,
        )
        for one in bins
    ]
    batches = [
        batch.to(packing.device) for batch in packed_micro_batches(rows, seq_length=packing.seq_length, pad_id=pad_id)
    ]
    if not batches:  # no rank has a sample
        return []
    was_training = model.training
    model.eval()
    outputs = forward_only(model, batches, ScoreObjective(value_head(model), "pointwise"))
    model.train(was_training)
    found: dict[int, float] = {}
    for one, values, batch in zip(bins, outputs, batches, strict=False):
        found |= dict(zip(one, values[0, score_positions(batch)].tolist(), strict=True))
    scores = [found.get(item, 0.0) for item in range(len(samples))]
    return _from_last_stage(scores)


def _from_last_stage(scores: list[float]) -> list[float]:
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    return of_rank(scores, last, parallel_state.get_pipeline_model_parallel_group())


class Preference:
    """One frozen reward model of the policy's architecture."""

    def __init__(self, cfg: RunConfig, which: PreferenceConfig, packing: Packing, device: Device):
        """cfg: of the run, whose model it is. Raises CheckpointError for a checkpoint without a head or of another."""
        self.cfg = which
        self._packing = packing
        self._model = build_model(cfg, device)
        add_value_head(self._model)
        load_module(self._model, latest_checkpoint(Path(which.checkpoint)))
        self._model.requires_grad_(False)
        self._sleep()

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """The score of each response, squashed as the config says; None for prompts of other tasks. Collective."""
        asked = [
            place for place, (prompt, _) in enumerate(pairs) if self.cfg.tasks == () or prompt.task in self.cfg.tasks
        ]
        samples = [self._sample(place, *pairs[place]) for place in asked]
        self._model.to(self._packing.device)
        values = score_samples(self._model, samples, self._packing)
        self._sleep()
        found: list[float | None] = [None] * len(pairs)
        for place, value in zip(asked, values, strict=True):
            found[place] = 1 / (1 + math.exp(-value)) if self.cfg.squash == "sigmoid" else value
        return found

    def _sample(self, place: int, prompt: Prompt, response: str) -> Sample:
        text = scored_text(response, self.cfg.scored)
        return chat_sample(self._packing.tokenizer, prompt.question, text, id=f"{place}")

    def _sleep(self) -> None:
        if self.cfg.offload:
            self._model.to("cpu")


def with_preferences(
    scores: list[Score], pairs: Sequence[tuple[Prompt, str]], preferences: list[Preference], *, step: int
) -> list[Score]:
    """Each score plus weight * preference of the reward models that count at this update (1-based). Collective.

    A sample that could not be graded stays an error; its preferences are still among the parts.
    """
    for one in preferences:
        if step >= one.cfg.from_step:
            added = one.score(pairs)
            scores = [_plus(score, one.cfg, value) for score, value in zip(scores, added, strict=True)]
    return scores


def _plus(score: Score, cfg: PreferenceConfig, value: float | None) -> Score:
    if value is None:
        return score
    parts = {**score.parts, f"preference/{cfg.name}": value}
    return replace(score, value=score.value + cfg.weight * value, parts=parts)
