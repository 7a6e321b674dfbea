"""Compose conf/ with Hydra, apply command-line overrides, validate everything at once, and record what ran."""

import copy
import dataclasses
import difflib
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from r1train.config.check import check
from r1train.config.schema import RunConfig
from r1train.config.validate import build
from r1train.errors import ConfigError, Problem
from r1train.log.atomic import write_atomically

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
PER_STAGE = "per_stage"
RECORDED_PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "tokenizers",
    "transformers",
    "numpy",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "math-verify",
    "reasoning-gym",
)


@dataclass(frozen=True)
class ParsedOverrides:
    """Command-line overrides: choices of group options, changes of per_stage, changes of single values."""

    choices: dict[str, str]
    per_stage: list[tuple[str, object]]
    values: list[tuple[str, object]]


def load_config(overrides: list[str], *, check_files: bool = True, made_later: tuple[Path, ...] = ()) -> RunConfig:
    """The frozen config of one run of one stage.

    overrides: `group=option` and `dotted.key=value` in Hydra's syntax. check_files: also look at the files the stage
    reads; made_later: run folders and files that earlier steps of the schedule will write, so they may be missing.
    Raises ConfigError with every problem of the config. Writes nothing.
    """
    tree = compose_tree(overrides)
    cfg, problems = build(tree)
    if cfg is not None:
        problems += check(cfg, check_files=check_files, made_later=made_later)
    if problems:
        raise ConfigError(problems)
    return cfg


def compose_tree(overrides: list[str]) -> dict[str, Any]:
    """Plain tree of one run, interpolations resolved, not yet validated. Raises ConfigError."""
    parsed = _parse(overrides)
    _check_options(parsed.choices)
    cfg = _with_per_stage(copy.deepcopy(_composed(tuple(parsed.choices.items()))), parsed)
    for key, value in parsed.values:
        _set(cfg, key, value)
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            [Problem(error.full_key or "config", None, what, "write an existing key in ${...}")]
        ) from error


@functools.cache
def _composed(choices: tuple[tuple[str, str], ...]) -> DictConfig:
    """The options, before any value changes. Kept: Hydra takes 0.1 s and a schedule asks often; copy before use."""
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[f"{group}={option}" for group, option in choices])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([Problem("conf", str(CONF), f"cannot be composed: {error}", "mend that file")]) from error
    OmegaConf.set_struct(cfg, False)
    return cfg


def group_options() -> dict[str, list[str]]:
    """Option names of every config group, read from conf/."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
    }


def _parse(overrides: list[str]) -> ParsedOverrides:
    parser, groups = OverridesParser.create(), group_options()
    parsed, problems = ParsedOverrides({}, [], []), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            problems.append(Problem(text, None, f"not an override: {str(error).splitlines()[0]}", "write key=value"))
            continue
        problem = _refuse(override, text)
        if problem is not None:
            problems.append(problem)
        elif override.key_or_group in groups:
            parsed.choices[override.key_or_group] = str(override.value())
        elif override.key_or_group.startswith(PER_STAGE + "."):
            parsed.per_stage.append((override.key_or_group, override.value()))
        else:
            parsed.values.append((override.key_or_group, override.value()))
    if problems:
        raise ConfigError(problems)
    return parsed


def _refuse(override: Override, text: str) -> Problem | None:
    if override.is_delete():
        return Problem(text, None, "a key cannot be removed from the command line", "set it: key=value (or key=null)")
    if override.is_sweep_override():
        return Problem(text, None, "several values for one key", "give one value; a list is written key=[a,b]")
    return None


def _check_options(choices: dict[str, str]) -> None:
    groups = group_options()
    problems = []
    for group, option in choices.items():
        if option not in groups[group]:
            close = difflib.get_close_matches(option, groups[group], n=1)
            known = ", ".join(groups[group])
            fix = f"did you mean {group}={close[0]}? Known: {known}" if close else f"choose one of: {known}"
            problems.append(Problem(group, option, f"no such option of the group {group}", fix))
    if problems:
        raise ConfigError(problems)


def _with_per_stage(cfg: DictConfig, parsed: ParsedOverrides) -> DictConfig:
    """Merge what applies to this stage only: per_stage.<kind of stage>, then per_stage.<step id>; drop the rest."""
    _check_per_stage(cfg, [key for key, _ in parsed.per_stage])
    for key, value in parsed.per_stage:
        _set(cfg, key, value)
    per_stage = cfg.pop(PER_STAGE, {}) or {}
    kind = OmegaConf.select(cfg, "stage.name")
    step = next((value for key, value in reversed(parsed.values) if key == "step"), kind)
    for name in dict.fromkeys((kind, step)):
        if name in per_stage:
            cfg = _merged(cfg, name, per_stage[name])
    return cfg


def _check_per_stage(cfg: DictConfig, given: list[str]) -> None:
    """Raise ConfigError for names in per_stage that are no kind of stage and no step.

    An experiment may speak of the steps of any schedule, because it serves several; the command line, whose keys are
    given, of the chosen one only.
    """
    stages = set(group_options()["stage"])
    chosen = stages | {item.get("id") for item in OmegaConf.select(cfg, "schedule.steps") or []}
    named = [(name, stages | _steps_of_all_schedules() | chosen) for name in OmegaConf.select(cfg, PER_STAGE) or {}]
    named += [(key.split(".")[1], chosen) for key in given]
    problems = [
        Problem(
            f"{PER_STAGE}.{name}", None, "neither a stage nor a step of the schedule", f"use one of {sorted(known)}"
        )
        for name, known in named
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)


@functools.cache
def _steps_of_all_schedules() -> frozenset[str]:
    trees = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "schedule").glob("*.yaml")]
    return frozenset(step["id"] for tree in trees for step in tree["steps"])


def _merged(cfg: DictConfig, name: str, changes: DictConfig) -> DictConfig:
    """cfg with one part of per_stage on top. Lists are replaced, so an index into one cannot be merged."""
    try:
        return cast(DictConfig, OmegaConf.merge(cfg, changes))
    except OmegaConfBaseException as error:
        what = f"cannot be merged: {str(error).splitlines()[0]}"
        raise ConfigError([Problem(f"{PER_STAGE}.{name}", None, what, "give a list as a whole: key=[...]")]) from error


def _set(cfg: DictConfig, key: str, value: object) -> None:
    """Set a dotted key, adding what is not there: validation reports unknown keys with all other problems."""
    try:
        OmegaConf.update(cfg, key, value, force_add=True)
    except (OmegaConfBaseException, IndexError, ValueError) as error:
        problem = Problem(key, value, f"cannot be set: {str(error).splitlines()[0]}", "write an existing key")
        raise ConfigError([problem]) from error


def config_tree(cfg: RunConfig) -> dict[str, Any]:
    """The resolved config as JSON would give it back: dicts, lists and plain values."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def dump_resolved(cfg: RunConfig, run_dir: Path) -> None:
    """Write resolved.yaml (every value) and versions.json (what ran) into run_dir, each atomically."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "resolved.yaml", yaml.safe_dump(config_tree(cfg), sort_keys=False))
    write_atomically(run_dir / "versions.json", json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, object]:
    """What ran: commit (None outside a git tree), uncommitted changes, package versions, python and platform."""
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(_git("status", "--porcelain")),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _package_version(name) for name in RECORDED_PACKAGES},
    }


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git in the repository; None where there is no git, no repository or no commit yet."""
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
