"""Partial rollouts: a sample gets so many tokens per rollout and goes on in the next one, with the weights of then.

After Kimi k1.5 (arXiv 2501.12599 section 2.6.2). A rollout trains on the first groups that are whole, in the order of
their prompts, so nobody waits for the longest sample; whole, because an advantage compares finished answers.
"""

from r1train.config.schema import GrpoStage, RunConfig
from r1train.data.prompts import Prompt
from r1train.rl.ask import Sampler, Try, Turn, draw, open_journal, prompts_of_turn, scored_groups
from r1train.rl.carried import Shard, carried_by_all, write_carried
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup, choose, prompts_to_ask
from r1train.rl.gather import gather_objects
from r1train.rl.pieces import Flight, from_rows, is_whole, joined, requests, to_rows
from r1train.rl.stored import store_rollout
from r1train.rl.watch import RolloutWatcher
from r1train.rollout.engine import SamplingParams
from r1train.rollout.journal import Journal
from r1train.rollout.types import Sample
from r1train.train.setup import Trainer


class PieceWatcher(RolloutWatcher):
    """Joins every piece to its sample; the graders get a group when its last sample has ended."""

    def __init__(self, flights: list[Flight], sampler: Sampler, cfg: RunConfig, *, places: list[int], one: Try):
        """places: of the requests that the engine is asked, in their order (rl/pieces.py, requests)."""
        assert isinstance(cfg.stage, GrpoStage)
        super().__init__(sampler.scorer, places, journal=one.journal, attempt=one.attempt, group_size=1)
        self._flights, self._decode = flights, sampler.tokenizer.decode
        self._budget, self._of_group = cfg.rollout.max_response_tokens, cfg.stage.samples_per_prompt

    def _submit(self, place: int, prompt: Prompt, sample: Sample) -> None:
        number, index = divmod(place, self._of_group)
        flight = self._flights[number]
        before = flight.samples.get(index)
        flight.samples[index] = joined(before, sample, prompt_id=flight.prompt.id, index=index, decode=self._decode)
        if is_whole(flight, group_size=self._of_group, budget=self._budget):
            for key, whole in flight.samples.items():
                self._scorer.submit(number * self._of_group + key, flight.prompt, whole.text)

    def set_scores(self) -> None:
        """Give every group that became whole its scores. Waits for the graders."""
        scores = self._scorer.collect()
        for number in sorted({key // self._of_group for key in scores}):
            first = number * self._of_group
            self._flights[number].scores = tuple(scores[first + index] for index in range(self._of_group))


class Partial:
    """rollout.asynchrony.mode=partial: what is under way is carried from rollout to rollout."""

    def __init__(self, trainer: Trainer, sampler: Sampler):
        self._trainer, self._sampler = trainer, sampler
        self._flights = from_rows(carried_by_all(trainer.cfg.run_dir, step=trainer.state.step) or [])

    def take(self) -> Rollout:
        """The first whole groups; asks as many new prompts as keep in_flight times the wanted groups under way."""
        cfg, state, stage = self._trainer.cfg, self._trainer.state, self._trainer.cfg.stage
        assert isinstance(stage, GrpoStage)
        turn = Turn.of(state)
        wanted = stage.prompts_per_step * stage.minibatches_per_step
        self._trainer.gather_weights()
        asked = self._launch(turn, wanted)
        journal = open_journal(self._trainer, turn, self._params(turn, 0))
        passes, whole = 0, dict[int, bool]()
        while sum(whole.values()) < wanted:
            self._draw(turn, passes, journal)
            whole = self._whole()
            passes += 1
        scored = self._land(choose(whole, wanted), turn)
        after = turn.step + stage.minibatches_per_step
        write_carried(cfg.run_dir, Shard.here(), to_rows(self._flights), step=after, now=turn.step)
        store_rollout(cfg, scored, step=turn.step)
        if journal is not None:
            journal.remove()
        gauges = {"sampling/prompts": float(asked), "partial/passes": float(passes), **self._left()}
        return Rollout(chosen=scored, generated=scored, asked=asked, gauges=gauges)

    def _launch(self, turn: Turn, wanted: int) -> int:
        """Take new prompts, so that as many groups are under way as the config says; how many over all ranks."""
        cfg = self._trainer.cfg
        target = prompts_to_ask(wanted, cfg.rollout.asynchrony.in_flight)
        count = max(target - sum(gather_objects(len(self._flights))), 0)
        asked = prompts_of_turn(cfg, self._sampler, turn, start=0, count=count)
        self._flights += [Flight(turn.position + place, prompt) for place, prompt in asked.items()]
        return count

    def _draw(self, turn: Turn, attempt: int, journal: Journal | None) -> None:
        """One piece of every sample that has not ended."""
        cfg = self._trainer.cfg
        assert isinstance(cfg.stage, GrpoStage)
        size, budget = cfg.stage.samples_per_prompt, cfg.rollout.max_response_tokens
        asked = requests(self._flights, group_size=size, budget=budget)
        one = Try(self._params(turn, attempt), self._trainer.state.step, journal, attempt)

        def watcher_of(rest: list[int]) -> PieceWatcher:
            return PieceWatcher(self._flights, self._sampler, cfg, places=rest, one=one)

        _, watcher = draw(self._sampler.engine, asked, one, watcher_of)
        watcher.set_scores()

    def _whole(self) -> dict[int, bool]:
        """Place -> whether the group is whole, over all data-parallel ranks. Collective."""
        mine = [(flight.place, flight.scores is not None) for flight in self._flights]
        return dict(pair for part in gather_objects(mine) for pair in part)

    def _land(self, chosen: set[int], turn: Turn) -> list[ScoredGroup]:
        """This rank's chosen groups with their scores; they are no longer under way. Collective."""
        done = [flight for flight in self._flights if flight.place in chosen]
        self._flights = [flight for flight in self._flights if flight.place not in chosen]
        groups = {flight.place: flight.group for flight in done}
        scores = {flight.place: flight.scores for flight in done if flight.scores is not None}
        return scored_groups(self._trainer.cfg, self._sampler, groups, scores, turn)

    def _left(self) -> dict[str, float]:
        """What the next rollout begins with, over all data-parallel ranks. Collective."""
        tokens = [sum(len(sample.tokens) for sample in flight.samples.values()) for flight in self._flights]
        parts = gather_objects((len(self._flights), sum(tokens)))
        return {
            "partial/carried_groups": float(sum(groups for groups, _ in parts)),
            "partial/carried_tokens": float(sum(count for _, count in parts)),
        }

    def _params(self, turn: Turn, attempt: int) -> SamplingParams:
        cfg, new_tokens = self._trainer.cfg, self._trainer.cfg.rollout.asynchrony.new_tokens
        assert new_tokens is not None, "the config check asks for it"
        return SamplingParams(
            samples_per_prompt=1,
            temperature=cfg.rollout.temperature,
            top_p=cfg.rollout.top_p,
            max_response_tokens=new_tokens,
            seed=cfg.seed,
            name=f"{cfg.step}/{turn.step}/{attempt}",
        )
