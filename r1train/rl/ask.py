"""One rollout: prompts to the engine, answers to the graders, both as they finish; groups with scores come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron.core import parallel_state

from r1train.config.schema import GrpoStage, RunConfig
from r1train.data.mix import PromptMix
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.reward.base import Score
from r1train.reward.preference import Preference
from r1train.reward.score import Scorer
from r1train.rl.carried import Shard
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup, collect
from r1train.rl.gather import common_places, from_first_tensor_rank, gather_objects
from r1train.rl.late import late_prompts_count, preferred
from r1train.rl.overlong import shaped_score
from r1train.rl.stored import store_rollout
from r1train.rl.watch import RolloutWatcher
from r1train.rollout.checksum import value_sums
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.journal import Journal
from r1train.rollout.types import Group
from r1train.train.setup import Trainer
from r1train.train.state import TrainState


@dataclass(frozen=True)
class Sampler:
    """Prompts, the engine that answers them, and the graders and reward models that score the answers."""

    prompts: PromptMix
    engine: Engine
    scorer: Scorer
    preferences: list[Preference]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Turn:
    """Which rollout. step: updates that are done when training on it begins; position: prompts asked before it.

    late_from: the position at which late prompts joined; None: not before this rollout.
    """

    step: int
    position: int
    late_from: int | None = None

    @staticmethod
    def of(state: TrainState) -> "Turn":
        """The rollout that training in this state begins with."""
        return Turn(state.step, state.position, state.late_from)


@dataclass(frozen=True)
class Try:
    """One call of the engine. attempt: its number within the rollout; version: of the weights that draw."""

    params: SamplingParams
    version: int
    journal: Journal | None
    attempt: int


def prompts_of_turn(cfg: RunConfig, sampler: Sampler, turn: Turn, *, start: int, count: int) -> dict[int, Prompt]:
    """This rank's share of prompts [start, start + count) of this rollout: place in the rollout -> prompt.

    Prompts that are asked again have ids of their own (with_own_ids).
    """
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    late = None
    if late_prompts_count(cfg, turn.step + 1):
        late = turn.position if turn.late_from is None else turn.late_from
    asked = with_own_ids(sampler.prompts.take(turn.position + start, count, late=late), start=start)
    return {start + index: asked[index] for index in range(rank, count, size)}


def with_own_ids(prompts: Sequence[Prompt], *, start: int) -> list[Prompt]:
    """The prompts; the second and further ones of one id are named <id>@<place in the rollout>, from `start` on.

    Random numbers belong to a prompt's id: under the same id all its groups would be copies of the first one.
    """
    seen: set[str] = set()
    named = []
    for place, prompt in enumerate(prompts, start):
        named.append(replace(prompt, id=f"{prompt.id}@{place}") if prompt.id in seen else prompt)
        seen.add(prompt.id)
    return named


def roll_out(trainer: Trainer, sampler: Sampler, turn: Turn) -> Rollout:
    """The groups of the next minibatches_per_step updates, sampled and scored with the weights as they are."""
    cfg, stage = trainer.cfg, trainer.cfg.stage
    assert isinstance(stage, GrpoStage)
    # The engine and the sums read the weights, and no forward of the trainer has brought them up to date yet.
    trainer.gather_weights()
    journal = open_journal(trainer, turn, sampling(cfg, turn, attempt=0))

    def ask(start: int, count: int, attempt: int) -> list[ScoredGroup]:
        asked = prompts_of_turn(cfg, sampler, turn, start=start, count=count)
        params = sampling(cfg, turn, attempt=attempt)

        def watcher_of(rest: list[int]) -> RolloutWatcher:
            return RolloutWatcher(
                sampler.scorer, rest, journal=journal, attempt=attempt, group_size=params.samples_per_prompt
            )

        groups, watcher = draw(sampler.engine, asked, Try(params, trainer.state.step, journal, attempt), watcher_of)
        return scored_groups(cfg, sampler, groups, watcher.scores(), turn)

    wanted = stage.prompts_per_step * stage.minibatches_per_step
    rollout = collect(ask, gather_objects, wanted=wanted, cfg=cfg.rl.sampling)
    store_rollout(cfg, rollout.generated, step=turn.step)
    if journal is not None:
        journal.remove()
    return rollout


def draw[W: RolloutWatcher](
    engine: Engine, asked: dict[int, Prompt], one: Try, watcher_of: Callable[[list[int]], W]
) -> tuple[dict[int, Group], W]:
    """Groups of the prompts asked, in their order: what a killed attempt stored, and the rest from the engine.

    The watcher hears of all of them, while the engine generates. Collective.
    """
    found = {} if one.journal is None else one.journal.found(one.attempt)
    stored = common_places({place for place, prompt in asked.items() if found.get(place) == prompt.id})
    groups = {}
    if one.journal is not None:
        groups = {place: one.journal.group(one.attempt, place, asked[place]) for place in sorted(stored)}
    rest = [place for place in asked if place not in groups]
    watcher = watcher_of(rest)
    for place, group in groups.items():
        watcher.known(place, group)
    generated = engine.generate(
        [asked[place] for place in rest], one.params, policy_version=one.version, watcher=watcher
    )
    groups |= dict(zip(rest, generated, strict=True))
    return {place: groups[place] for place in asked}, watcher


def scored_groups(
    cfg: RunConfig,
    sampler: Sampler,
    groups: dict[int, Group],
    scores: dict[int, tuple[Score, ...]],
    turn: Turn,
) -> list[ScoredGroup]:
    """The groups in order, with what reward models and the length rule add to their scores. Collective."""
    scores = from_first_tensor_rank(preferred(groups, scores, sampler.preferences, step=turn.step + 1))
    budget, rule = cfg.rollout.max_response_tokens, cfg.rl.overlong
    return [
        ScoredGroup(
            place,
            group,
            tuple(
                shaped_score(sample, score, rule, budget=budget)
                for sample, score in zip(group.samples, scores[place], strict=True)
            ),
        )
        for place, group in groups.items()
    ]


def open_journal(trainer: Trainer, turn: Turn, params: SamplingParams) -> Journal | None:
    """Where this rank's finished groups of the coming rollout go, None where they are not kept."""
    cfg = trainer.cfg
    if not cfg.rollout.store_groups:
        return None
    name = f"step_{turn.step:08d}_{Shard.here().name}.part.jsonl"
    return Journal(
        cfg.run_dir / "rollouts" / name,
        params,
        policy_version=trainer.state.step,
        weights=value_sums(trainer.module.named_parameters()),
    )


def sampling(cfg: RunConfig, turn: Turn, *, attempt: int) -> SamplingParams:
    """Every try of a rollout draws other numbers: with few prompts a later one asks the same prompt again."""
    assert isinstance(cfg.stage, GrpoStage)
    name = f"{cfg.step}/{turn.step}"
    return SamplingParams(
        samples_per_prompt=cfg.stage.samples_per_prompt,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
        max_response_tokens=cfg.rollout.max_response_tokens,
        seed=cfg.seed,
        name=name if attempt == 0 else f"{name}/{attempt}",
    )
