"""What a run has done so far: everything that decides the next step besides weights and optimizer state."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainState:
    """Progress of one stage run.

    step: finished optimizer steps; tokens: consumed tokens over all ranks; position: samples taken from the data
    source. There is no RNG state: nothing draws from a global generator (dropout is 0 in this model family, and every
    random choice comes from a stream named by seed and position, dist/seed.py). late_from: the position at which RL's
    late prompts joined, None before.
    """

    step: int = 0
    tokens: int = 0
    position: int = 0
    late_from: int | None = None

    def after_step(self, *, tokens: int, samples: int) -> "TrainState":
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, position=self.position + samples)
