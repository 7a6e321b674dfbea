"""Errors a user can cause. Each says what is wrong, where, and how to fix it; the process exits with code 2."""

import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """A stage of the schedule ended with an error; carries its error, or its last lines.

    exit_code: 2 where the stage ended with 2, a user's mistake, else 1.
    """

    def __init__(self, message: str, *, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class StaleRun(R1TrainError):
    """A finished or begun stage does not fit its config, its inputs or its own files any more."""


def first_of(wrong: Sequence[str]) -> str:
    """The first NAMED of them for a message, each on a line of its own, and how many more there are."""
    more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
    return "".join(f"\n  - {one}" for one in [*wrong[:NAMED], *more])


# These come without a path where a file that is open already cannot be written on.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there, or choose another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "permission to write there, or choose another place"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "correct the path; the folder it lies in has to be there"),
}


def file_problem(error: OSError) -> str | None:
    """What a user reads of an error of the file system: path, reason, where it was met, fix. None for other kinds."""
    if error.filename is None and error.errno not in _OF_THE_DISK:
        return None
    met = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in met if _is_ours(Path(frame.filename))]
    place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in (own or met)[-1:])
    path = "a file" if error.filename is None else error.filename
    fix = _FIXES.get(error.errno or 0, "check that path, or choose another place")
    return f"{path}: {error.strerror}{place}. Fix: {fix} (root=, data.dir=, or the option that names it)"


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(Path(__file__).parents[1]) and "site-packages" not in path.parts


def exit_code(run: Callable[[], object]) -> int:
    """Run a tool's work: 0, or an error's own exit code with its message on stderr instead of a traceback."""
    try:
        run()
    except R1TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (problem := file_problem(error)) is None:
            raise
        print(problem, file=sys.stderr)
        return R1TrainError.exit_code
    return 0
