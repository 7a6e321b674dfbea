"""Every rule that a type-correct config must obey, run together so that all problems are reported at once."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from r1train.config import (
    check_data,
    check_deepseek,
    check_dense,
    check_eval,
    check_files,
    check_fp8,
    check_layout,
    check_model,
    check_rl,
    check_rollout,
    check_samples,
    check_schedule,
    check_switches,
    check_token_merging,
    check_train,
)
from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.errors import Problem

MAY_BE_ZERO = frozenset(
    {
        "seed",
        "num_dense_layers",
        "num_shared_experts",
        "mtp_depth",
        "train",
        "heldout",
        "cold_start",
        "worked_examples",
    }
)
RULES = (
    *check_model.RULES,
    *check_layout.RULES,
    *check_switches.RULES,
    *check_fp8.RULES,
    *check_token_merging.RULES,
    *check_train.RULES,
    *check_data.RULES,
    *check_rl.RULES,
    *check_rollout.RULES,
    *check_samples.RULES,
    *check_eval.RULES,
    *check_schedule.RULES,
)
FILE_RULES = check_files.RULES


def check(cfg: RunConfig, *, check_files: bool, made_later: tuple[Path, ...] = ()) -> list[Problem]:
    """All problems of a config. Rules that divide run only once every size is at least 1; file rules run in any case.

    check_files, made_later: as for load_config. Imports no torch and touches no device.
    """
    problems = sizes_are_positive(cfg) + numbers_are_finite(cfg)
    if not problems:
        problems = [problem for rule in RULES for problem in rule(cfg)] + problems_of_the_shape(cfg)
    if check_files:
        problems += [problem for rule in FILE_RULES for problem in rule(cfg, made_later)]
    return problems


def problems_of_the_shape(cfg: RunConfig) -> list[Problem]:
    """What the rules of the model's own architecture find."""
    model, parallel = cfg.model, cfg.parallel
    if isinstance(model, ModelConfig):
        problems = [problem for rule in check_deepseek.RULES for problem in rule(model)]
        return problems + [problem for rule in check_deepseek.LAYOUT_RULES for problem in rule(model, parallel)]
    problems = [problem for rule in check_dense.RULES for problem in rule(model)]
    return problems + [problem for rule in check_dense.LAYOUT_RULES for problem in rule(model, parallel)]


def sizes_are_positive(cfg: RunConfig) -> list[Problem]:
    """Integers are sizes and counts here: at least 1, or 0 where nothing is a sensible amount."""
    problems = []
    for key, value in _leaves(cfg, ""):
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        least = 0 if key.rsplit(".", 1)[-1] in MAY_BE_ZERO else 1
        if value < least:
            problems.append(Problem(key, value, f"below {least}", f"write an integer >= {least}"))
    return problems


def numbers_are_finite(cfg: RunConfig) -> list[Problem]:
    """No nan or infinity anywhere."""
    return [
        Problem(key, value, "not a finite number", "write a finite number")
        for key, value in _leaves(cfg, "")
        if isinstance(value, float) and not math.isfinite(value)
    ]


def _leaves(node: object, key: str) -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every scalar, except in free-form mappings (task parameters, styles, `set`)."""
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from _leaves(vars(node)[field.name], f"{key}.{field.name}" if key else field.name)
    elif isinstance(node, tuple):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{key}.{index}")
    elif not isinstance(node, dict):
        yield key, node
