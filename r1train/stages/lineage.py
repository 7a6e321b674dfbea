"""What a stage is made from and what it makes: its manifest, and why a run folder is stale. docs/lineage.md.

Imports no torch: the orchestrator and mode=report ask, too.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from r1train.config.load import config_tree
from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.config.schema import EvaluateStage, PrepareStage, PretrainStage, RunConfig
from r1train.config.schema_rl import StopIf
from r1train.config.validate import RETIRED
from r1train.data.documents import BUILTIN_PREFIX
from r1train.data.roles import TOKENIZER_FILES
from r1train.log.checkpoints import checkpoints
from r1train.log.manifest import (
    FILE_NAME,
    Artifact,
    Digests,
    Manifest,
    finish,
    hash_of,
    read_manifest,
)
from r1train.log.result import StageResult, read_result
from r1train.stages.data_folder import written_files

_TRAINING = ("seed", "model", "optim", "lr", "stage")
# Parts of the config that decide a stage's result; stages that are not named here: all but PLACES.
DECIDES: dict[str, tuple[str, ...]] = {
    "prepare": ("data", "stage"),
    "pretrain": (*_TRAINING, "data.corpora", "data.packing", "data.mask_across_documents", "eval.perplexity_tokens"),
    "sft": _TRAINING,
    "distill": _TRAINING,
    "reward_model": _TRAINING,
    "grpo": (*_TRAINING, "rollout", "reward", "rl"),
    "reject": ("seed", "model", "rollout", "reward", "stage"),
    "collect": ("seed", "model", "rollout", "reward", "stage"),
    "pairs": ("seed", "stage"),
    "evaluate": ("seed", "model", "rollout.max_prompt_tokens", "reward.answer_from", "reward.code", "eval", "stage"),
}
EVALUATED_AFTER = (
    "evaluate_after",
    "eval.problems_per_task",
    "eval.samples_per_problem",
    "eval.temperature",
    "eval.top_p",
    "eval.max_response_tokens",
    "rollout.max_prompt_tokens",
    "reward.answer_from",
    "reward.code",
)
# Where and how fast, not what: another layout, machine or place gives the same result. Keys without list indices.
PLACES = ("root", "name", "step", "schedule", "cluster", "parallel")
SPEED = frozenset(
    {
        "data.dir",
        "data.loader",
        "stage.save_every_steps",
        "stage.keep_checkpoints",
        "stage.micro_batch_size",
        "optim.cpu_offload_fraction",
        "rollout.batch_size",
        "rollout.cuda_graphs",
        "rollout.gpu_memory_share",
        "rollout.push_mib",
        "rollout.store_groups",
        "rollout.keep_stored",
        "reward.grader_processes",
        "reward.preferences.offload",
        "rl.reference_offload",
        "rl.offload_during_rollout",
        "rl.old_logprobs",
        "eval.folder",
        "eval.passkey.batch_tokens",
        # When to stop, not what is computed until then.
        *(f"rl.stop_if.{limit.name}" for limit in dataclasses.fields(StopIf)),
    }
)
# Keys whose default is not what versions before them did: which key ruled then.
RULED_BEFORE = {"rl.sequence_loss_coef": "model.sequence_loss_coef"}
# Last words of keys that name files, run folders or servers: what lies there is compared, not its path.
FILE_KEYS = ("dataset", "prompts", "mix", "path", "decontaminate", "train_file", "heldout_file")
RUN_KEYS = ("init_from", "checkpoint", "samples_from")
UNCOMPARED = (*FILE_KEYS, *RUN_KEYS, "tokenizer", "url", "api_key_file")
# What a stage leaves in its run folder before it has made anything that a second attempt would go on from.
EMPTY = frozenset(
    {FILE_NAME, "resolved.yaml", "versions.json", "logs", "locks", "tb", "metrics.jsonl", "rollouts", "checkpoints"}
)


def begin_manifest(cfg: RunConfig) -> Manifest:
    """The manifest of a stage that starts now; versions.json has been written."""
    versions = json.loads((cfg.run_dir / "versions.json").read_text(encoding="utf-8"))
    tree = config_tree(cfg)
    return Manifest(
        step=cfg.step,
        stage=cfg.stage.name,
        config_hash=hash_of(deciding(tree)),
        config=tree,
        inputs=tuple(inputs_of(cfg, Digests(Path(cfg.root)))),
        commit=versions["git_commit"],
        dirty=versions["git_dirty"],
        versions={"python": versions["python"], **versions["packages"]},
    )


def finish_manifest(cfg: RunConfig, begun: Manifest, result: StageResult) -> Manifest:
    """With what the stage made, and its numbers without wall-clock times."""
    numbers = {name: value for name, value in dataclasses.asdict(result).items() if name != "seconds"}
    return finish(begun, tuple(outputs_of(cfg, Digests(Path(cfg.root)))), numbers)


def deciding(tree: dict[str, Any]) -> dict[str, object]:
    """Dotted key -> value of everything in a resolved config that decides the stage's result, paths left out."""
    wanted = DECIDES.get(tree["stage"]["name"])
    if wanted is not None and tree["evaluate_after"]:
        wanted = (*wanted, *EVALUATED_AFTER)
    found = {}
    for key, value in _leaves(tree, ""):
        own = wanted is None or any(key == part or key.startswith(f"{part}.") for part in wanted)
        place = key.split(".")[0] in PLACES or _without_indices(key) in SPEED | RETIRED
        if own and not place and _is_compared(key, value):
            found[key] = value
    return found


def inputs_of(cfg: RunConfig, digests: Digests) -> list[Artifact]:
    """Files and checkpoints that the stage reads and that are there, by config key or by what they are."""
    found: list[Artifact | None] = []
    tree = config_tree(cfg)
    wanted = DECIDES.get(cfg.stage.name, ("stage", "reward"))
    for key, value in _leaves(tree, ""):
        if not isinstance(value, str) or not any(key.startswith(f"{part}.") for part in wanted):
            continue
        if _last_word(key) in RUN_KEYS:
            found += [digests.artifact(f"{key}{suffix}", path) for suffix, path in _run_inputs(cfg, Path(value))]
        elif _last_word(key) in FILE_KEYS:
            found.append(digests.artifact(key, Path(value)))
    files = _sources(cfg) if isinstance(cfg.stage, PrepareStage) else _data_files(cfg)
    found += [digests.artifact(name, path) for name, path in files]
    return [artifact for artifact in found if artifact is not None]


def outputs_of(cfg: RunConfig, digests: Digests) -> list[Artifact]:
    """What a finished stage leaves for others: data, its last checkpoint, sets of samples, evaluations."""
    run_dir = cfg.run_dir
    paths = [*last_checkpoint(run_dir), *_sets(run_dir), *sorted(run_dir.glob("eval/**/*.json"))]
    if isinstance(cfg.stage, PrepareStage):
        paths += written_files(Path(cfg.data.dir))
    artifacts = [digests.artifact(digests.relative(path), path) for path in paths]
    return [artifact for artifact in artifacts if artifact is not None]


def last_checkpoint(run_dir: Path) -> list[Path]:
    """The newest finished checkpoint of a run folder, [] without one."""
    return checkpoints(run_dir)[-1:]


def reasons(cfg: RunConfig, digests: Digests) -> list[str]:
    """Why the run folder does not fit any more, [] where it does, where nothing was made in it, or without a manifest.

    Of a stage that is not finished, its own files are not looked at.
    """
    manifest = read_manifest(cfg.run_dir)
    done = read_result(cfg.run_dir) is not None
    if manifest is None or (not done and not _has_work(cfg.run_dir)):
        return []
    found = config_reasons(manifest.config, config_tree(cfg))
    now = {artifact.name: artifact for artifact in inputs_of(cfg, digests)}
    for then in manifest.inputs:
        if then.name not in now:
            found.append(f"its input {then.path} ({then.name}) is gone")
        elif now[then.name].digest != then.digest:
            new = now[then.name].path
            what = "has changed" if new == then.path else f"was {then.path}, another content"
            found.append(f"its input {new} ({then.name}) {what}")
    before = {then.name for then in manifest.inputs}
    found += [f"its input {new.path} ({name}) was not there before" for name, new in now.items() if name not in before]
    for made in manifest.outputs if done else ():
        digest = digests.of(digests.place(made))
        if digest != made.digest:
            found.append(f"its own {made.path} {'is gone' if digest is None else 'was altered after it had finished'}")
    return found


def config_reasons(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Deciding keys that differ between two resolved configs; one that only the other knows has its default there."""
    old, new = deciding(then), deciding(now)
    found = []
    for key in dict.fromkeys((*old, *new)):
        if _standing(old, key) != _standing(new, key):
            was, is_now = (repr(side[key]) if key in side else "absent" for side in (old, new))
            found.append(f"{key} was {was}, is now {is_now}")
    return found


def _standing(side: dict[str, object], key: str) -> object:
    """What `key` is in a config that may not know it."""
    if key in side or RULED_BEFORE.get(key) not in side:
        return side.get(key, default_of(key))
    return side[RULED_BEFORE[key]]


def default_of(key: str) -> object:
    """What a config of a version before `key` stands for: the default it came with, null where it has none: off."""
    group, _, name = key.partition(".")
    kind = get_type_hints(RunConfig).get(group)
    known = {one.name: one.default for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    found = known.get(name)
    return None if found is dataclasses.MISSING else found


def _run_inputs(cfg: RunConfig, folder: Path) -> Iterator[tuple[str, Path]]:
    """What a stage reads of a run folder: its last checkpoint (or all of them), else its sets of samples."""
    if isinstance(cfg.stage, EvaluateStage) and cfg.stage.checkpoints == "all":
        for checkpoint in checkpoints(folder):
            yield f".{checkpoint.name}", checkpoint
    elif last := last_checkpoint(folder):
        yield "", last[0]
    else:
        for path in _sets(folder):
            yield f".{path.name}", path


def _sets(run_dir: Path) -> list[Path]:
    return sorted(path for path in run_dir.glob("*.jsonl") if path.name != "metrics.jsonl")


def _sources(cfg: RunConfig) -> Iterator[tuple[str, Path]]:
    """Files that corpora and tokenizer are made from; what ships with the package is its commit's."""
    if cfg.data.tokenizer is not None:
        for name in TOKENIZER_FILES:
            yield f"data.tokenizer {name}", Path(cfg.data.tokenizer) / name
    for corpus in cfg.data.corpora:
        if Path(corpus.source).is_file():
            yield f"source of {corpus.name}", Path(corpus.source)


def _data_files(cfg: RunConfig) -> Iterator[tuple[str, Path]]:
    """Files of the data folder that the stage reads without naming them in its config."""
    data = Path(cfg.data.dir)
    for name in TOKENIZER_FILES:
        yield "tokenizer" if name == "tokenizer.json" else f"tokenizer {name}", data / "tokenizer" / name
    if isinstance(cfg.stage, PretrainStage | EvaluateStage):
        for corpus in cfg.data.corpora:
            parts = ("", HELDOUT_SUFFIX) if isinstance(cfg.stage, PretrainStage) else (HELDOUT_SUFFIX,)
            for part in parts if corpus.weight > 0 else ():
                yield f"corpus {corpus.name}{part}", data / "corpus" / f"{corpus.name}{part}.bin"
    if isinstance(cfg.stage, EvaluateStage) or cfg.evaluate_after:
        yield "held-out problems", data / "prompts" / "heldout.jsonl"


def _has_work(run_dir: Path) -> bool:
    if last_checkpoint(run_dir):
        return True
    return run_dir.is_dir() and any(path.name not in EMPTY for path in run_dir.iterdir())


def _without_indices(key: str) -> str:
    return ".".join(word for word in key.split(".") if not word.isdigit())


def _is_compared(key: str, value: object) -> bool:
    """A file counts by its content; what ships with the package is no file of the run and counts by its name."""
    return _last_word(key) not in UNCOMPARED or (isinstance(value, str) and value.startswith(BUILTIN_PREFIX))


def _last_word(key: str) -> str:
    """The last part of a dotted key that is no list index."""
    return next(word for word in reversed(key.split(".")) if not word.isdigit())


def _leaves(node: object, key: str) -> Iterator[tuple[str, object]]:
    """Dotted key and value of every scalar; an empty mapping or list is one, too."""
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(node, dict):
        items = iter(node.items())
    elif isinstance(node, list):
        items = iter(enumerate(node))
    if not isinstance(node, dict | list) or not node:
        yield key, node
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))
