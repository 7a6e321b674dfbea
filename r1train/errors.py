"""Errors a user can cause. Each says what is wrong, where, and how to fix it; the process exits with code 2."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NAMED = 5  # of many things of one kind that are wrong, how many a message names


class R1TrainError(Exception):
    """Base of every user-facing error; `python -m r1train` prints it without a traceback and exits with 2."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config.

    key: dotted config key; value: what was found there; what: what is wrong with it; fix: what to write instead.
    """

    key: str
    value: object
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.what}. Fix: {self.fix}"


class ConfigError(R1TrainError):
    """Every problem of one config, reported together."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the config"
        super().__init__("\n  - ".join([count + ":", *map(str, problems)]))


class DataError(R1TrainError):
    """A data file is missing, empty, malformed or does not fit the tokenizer or the model."""


class CheckpointError(R1TrainError):
    """A checkpoint is missing, incomplete, or does not fit the model or the run that wants to load it."""


class EnvironmentProblem(R1TrainError):
    """A package, device or version that the run needs is not there."""


class RunInUse(R1TrainError):
    """Another live process writes into the same run folder."""


class StageFailed(R1TrainError):
    """A stage of the schedule ended with an error; carries its last lines."""

    exit_code = 1


class StaleRun(R1TrainError):
    """A finished or begun stage does not fit its config, its inputs or its own files any more."""


def first_of(wrong: Sequence[str]) -> str:
    """The first NAMED of them for a message, each on a line of its own, and how many more there are."""
    more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
    return "".join(f"\n  - {one}" for one in [*wrong[:NAMED], *more])


def exit_code(run: Callable[[], object]) -> int:
    """Run a tool's work: 0, or an error's own exit code with its message on stderr instead of a traceback."""
    try:
        run()
    except R1TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
