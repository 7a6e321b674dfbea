"""When rollouts are drawn, against the updates that train on them; one table, chosen by rollout.asynchrony.mode."""

from collections.abc import Callable
from typing import Protocol

from r1train.config.schema import GrpoStage
from r1train.reward.base import Score
from r1train.rl.ask import Sampler, Turn, roll_out
from r1train.rl.carried import Rows, Shard, carried_by_all, write_carried
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup
from r1train.rl.partial import Partial
from r1train.rollout.types import group_from_row, group_to_row
from r1train.train.setup import Trainer


class RolloutOrder(Protocol):
    """Where the loop gets what it trains on."""

    def take(self) -> Rollout:
        """The rollout of the updates that come next; called between rollouts, on every rank alike."""


class OnPolicy:
    """mode=none: drawn with the weights that its updates start from."""

    def __init__(self, trainer: Trainer, sampler: Sampler):
        self._trainer, self._sampler = trainer, sampler

    def take(self) -> Rollout:
        return roll_out(self._trainer, self._sampler, Turn.of(self._trainer.state))


class OneStepOff:
    """mode=one-step-off: drawn before the updates on the rollout before it, as an engine beside the trainer would."""

    def __init__(self, trainer: Trainer, sampler: Sampler):
        self._trainer, self._sampler = trainer, sampler
        rows = carried_by_all(trainer.cfg.run_dir, step=trainer.state.step)
        self._next = None if rows is None else rollout_from_rows(rows)

    def take(self) -> Rollout:
        """The rollout that was drawn last time, or at the very first a fresh one; draws the next one before."""
        cfg, state, stage = self._trainer.cfg, self._trainer.state, self._trainer.cfg.stage
        assert isinstance(stage, GrpoStage)
        rollout = self._next or roll_out(self._trainer, self._sampler, Turn.of(state))
        after = Turn(state.step + stage.minibatches_per_step, state.position + rollout.asked, state.late_from)
        self._next = None
        if after.step < stage.steps:
            self._next = roll_out(self._trainer, self._sampler, after)
            write_carried(cfg.run_dir, Shard.here(), rollout_to_rows(self._next), step=after.step, now=state.step)
        return rollout


ORDERS: dict[str, Callable[[Trainer, Sampler], RolloutOrder]] = {
    "none": OnPolicy,
    "one-step-off": OneStepOff,
    "partial": Partial,
}


def open_order(trainer: Trainer, sampler: Sampler) -> RolloutOrder:
    """What the config names, going on from the trainer's state. Raises CarriedLost as carried_by_all does."""
    return ORDERS[trainer.cfg.rollout.asynchrony.mode](trainer, sampler)


def rollout_to_rows(rollout: Rollout) -> Rows:
    """JSON-ready rows: what is known of the whole, then every group of this rank with its place and scores."""
    chosen = [one.place for one in rollout.chosen]
    return [
        {"asked": rollout.asked, "gauges": rollout.gauges, "chosen": chosen},
        *(
            {**group_to_row(one.group), "place": one.place, "scores": [score.to_row() for score in one.scores]}
            for one in rollout.generated
        ),
    ]


def rollout_from_rows(rows: Rows) -> Rollout:
    """Inverse of rollout_to_rows."""
    head, *rest = rows
    generated = [
        ScoredGroup(row["place"], group_from_row(row), tuple(map(Score.from_row, row["scores"]))) for row in rest
    ]
    return Rollout(
        chosen=[one for one in generated if one.place in head["chosen"]],
        generated=generated,
        asked=head["asked"],
        gauges=head["gauges"],
    )
