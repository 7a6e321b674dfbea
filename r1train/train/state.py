"""What a run has done so far: everything that decides the next step besides weights and optimizer state."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainState:
    """Progress of one stage run.

    step: finished optimizer steps; tokens: consumed tokens over all ranks; position: samples taken from the data
    source. There is no RNG state: nothing draws from a global generator (dropout is 0 in this model family, and every
    random choice comes from a stream named by seed and position, dist/seed.py).
    """

    step: int = 0
    tokens: int = 0
    position: int = 0

    def after_step(self, *, tokens: int, samples: int) -> "TrainState":
        return TrainState(self.step + 1, self.tokens + tokens, self.position + samples)
