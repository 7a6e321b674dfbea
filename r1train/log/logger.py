"""Logging of one rank: warnings and progress of rank 0 on stderr, everything of every rank in its own file."""

import logging
import sys
from pathlib import Path

ROOT_NAME = "r1train"


def setup_logging(run_dir: Path, *, rank: int, level: int = logging.INFO) -> logging.Logger:
    """Sends records of the `r1train` loggers to <run_dir>/logs/rank_N.log, and to stderr on rank 0.

    Calling it again (next run in the same process) replaces the handlers. Returns the package's root logger.
    """
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(ROOT_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.FileHandler(folder / f"rank_{rank}.log", encoding="utf-8")]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    form = logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    for handler in handlers:
        handler.setFormatter(form)
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger
