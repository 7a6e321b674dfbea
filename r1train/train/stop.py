"""Stop on SIGUSR1 after the step in progress: all ranks agree, save, and leave (Slurm's warning signal)."""

import signal

import torch

from r1train.errors import R1TrainError


class StopRequested(R1TrainError):
    """The run was asked to stop and has saved its state; starting it again continues. Exit code 0: nothing failed."""

    exit_code = 0


class StopSignal:
    """Remembers whether this process was asked to stop, from its creation on."""

    def __init__(self):
        self._asked = False
        signal.signal(signal.SIGUSR1, self._remember)

    def _remember(self, _number: int, _frame: object) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Collective, once per step: ranks get the signal at different moments."""
        asked = torch.tensor(int(self._asked), device=torch.cuda.current_device())
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked)
