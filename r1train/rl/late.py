"""What joins RL late: a second set of prompts, and reward models (R1 section 3.2.2: the last 400 of 1,700 steps)."""

from collections.abc import Mapping
from dataclasses import replace

from r1train.config.schema import GrpoStage, RunConfig
from r1train.data.mix import PromptMix
from r1train.data.prompts import PromptSet
from r1train.data.tokenizer import Tokenizer
from r1train.dist.init import Device
from r1train.reward.base import Score
from r1train.reward.preference import Packing, Preference, with_preferences
from r1train.rollout.types import Group
from r1train.train.state import TrainState


def open_prompts(cfg: RunConfig, tokenizer: Tokenizer) -> PromptMix:
    """The stage's prompts and, where the config names them, the late ones. Raises DataError as PromptSet does."""
    assert isinstance(cfg.stage, GrpoStage)
    limit, late = cfg.rollout.max_prompt_tokens, cfg.stage.late_prompts
    first = PromptSet(cfg.stage.prompts, tokenizer, seed=cfg.seed, max_prompt_tokens=limit)
    if late is None:
        return PromptMix(first)
    second = PromptSet(late.prompts, tokenizer, seed=cfg.seed, max_prompt_tokens=limit)
    return PromptMix(first, second, share=late.share)


def late_prompts_count(cfg: RunConfig, step: int) -> bool:
    """Whether the rollout for this update (1-based) asks late prompts."""
    assert isinstance(cfg.stage, GrpoStage)
    late = cfg.stage.late_prompts
    return late is not None and step >= late.from_step


def with_late_start(cfg: RunConfig, state: TrainState) -> TrainState:
    """The state, between two rollouts, with the position at which late prompts join, if they join here."""
    if state.late_from is not None or not late_prompts_count(cfg, state.step + 1):
        return state
    return replace(state, late_from=state.position)


def open_preferences(cfg: RunConfig, tokenizer: Tokenizer, device: Device) -> list[Preference]:
    """Every reward model of the config, loaded now: a wrong checkpoint must not show after a thousand steps."""
    assert isinstance(cfg.stage, GrpoStage)
    packing = Packing(tokenizer, cfg.stage.seq_length, device.torch_device)
    return [Preference(cfg, which, packing, device) for which in cfg.reward.preferences]


def preferred(
    groups: Mapping[int, Group], scores: Mapping[int, tuple[Score, ...]], preferences: list[Preference], *, step: int
) -> dict[int, tuple[Score, ...]]:
    """The scores of every group, by place, with what the reward models add at this update (1-based). Collective."""
    places = sorted(groups)
    pairs = [(groups[place].prompt, sample.text) for place in places for sample in groups[place].samples]
    known = [score for place in places for score in scores[place]]
    rest = iter(with_preferences(known, pairs, preferences, step=step))
    return {place: tuple(next(rest) for _ in groups[place].samples) for place in places}
