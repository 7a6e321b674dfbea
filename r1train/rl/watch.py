"""What happens to samples while others are still being generated: they are graded, and whole groups stored."""

from collections import defaultdict

from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.score import Scorer
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.journal import Journal
from r1train.rollout.types import Group, Sample


class RolloutWatcher:
    """Watcher of one try of a rollout: hands samples to the graders at once, and finished groups to the journal."""

    def __init__(self, scorer: Scorer, places: list[int], *, journal: Journal | None, attempt: int, group_size: int):
        """places: of the prompts that the engine is asked, in their order, among all that the rollout asks."""
        self._scorer = scorer
        self._places = places
        self._journal = journal
        self._attempt = attempt
        self._group_size = group_size
        self._samples: dict[int, list[Sample]] = defaultdict(list)

    def finished(self, place: int, prompt: Prompt, sample: Sample) -> None:
        where = self._places[place]
        self._submit(where, prompt, sample)
        samples = self._samples[where]
        samples.append(sample)
        if len(samples) == self._group_size and self._journal is not None:
            in_order = tuple(sorted(samples, key=lambda one: one.index))
            self._journal.add(self._attempt, where, Group(prompt=prompt, samples=in_order))

    def poll(self) -> None:
        self._scorer.poll()

    def known(self, place: int, group: Group) -> None:
        """A group that an earlier attempt of the run stored: graded again, because verdicts are not stored."""
        for sample in group.samples:
            self._submit(place, group.prompt, sample)

    def scores(self) -> dict[int, tuple[Score, ...]]:
        """Place -> scores of the group's samples. Waits for the graders."""
        scores = self._scorer.collect()
        found: dict[int, list[Score]] = defaultdict(list)
        for key in sorted(scores):
            found[key // self._group_size].append(scores[key])
        return {place: tuple(of_group) for place, of_group in found.items()}

    def _submit(self, place: int, prompt: Prompt, sample: Sample) -> None:
        self._scorer.submit(place * self._group_size + sample.index, prompt, sample.text)


def generate_and_score(
    engine: Engine, scorer: Scorer, prompts: list[Prompt], params: SamplingParams, *, policy_version: int
) -> list[tuple[Group, tuple[Score, ...]]]:
    """Every prompt's group and its scores, in order, graded while the engine generates. Collective.

    Raises as Scorer.submit().
    """
    places, size = list(range(len(prompts))), params.samples_per_prompt
    watcher = RolloutWatcher(scorer, places, journal=None, attempt=0, group_size=size)
    groups = engine.generate(prompts, params, policy_version=policy_version, watcher=watcher)
    scores = watcher.scores()
    return [(group, scores[place]) for place, group in zip(places, groups, strict=True)]
