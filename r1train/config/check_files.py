"""Rules about files that a stage reads: they exist, are not empty, and fit together. File checks only, no torch."""

import json
from dataclasses import replace
from pathlib import Path

from r1train.config.schema import (
    EvaluateStage,
    GrpoStage,
    PairsStage,
    PrepareStage,
    PretrainStage,
    RejectStage,
    RewardModelStage,
    RunConfig,
    SftStage,
)
from r1train.errors import Problem
from r1train.log.checkpoints import checkpoints

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUILTIN = "builtin:"
GENERATED = ("worked", "chats", "passkey")
GSM8K_ASSETS = ("gsm8k_train", "gsm8k_heldout")
NO_FILE = "no such file"
MadeLater = tuple[Path, ...]


def sources_exist(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if not isinstance(cfg.stage, PrepareStage):
        return []
    problems = []
    for index, corpus in enumerate(cfg.data.corpora):
        key = f"data.corpora.{index}.source"
        if corpus.source.startswith(BUILTIN):
            problems += _asset(key, corpus.source.removeprefix(BUILTIN))
        else:
            problems += _file(key, corpus.source, made_later)
    for index, task in enumerate(cfg.data.tasks):
        named = {"train_file": task.train_file, "heldout_file": task.heldout_file}
        for name, path in named.items():
            problems += [] if path is None else _file(f"data.tasks.{index}.{name}", path, made_later)
        if task.name == "gsm8k" and not any(named.values()):
            problems += [problem for name in GSM8K_ASSETS for problem in _asset(f"data.tasks.{index}.name", name)]
    return problems


def evaluation_sets_exist(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    """What the corpora must not share words with."""
    if not isinstance(cfg.stage, PrepareStage):
        return []
    return _evaluation_sets("data.decontaminate", cfg.data.decontaminate, made_later)


def _evaluation_sets(key: str, names: tuple[str, ...], made_later: MadeLater) -> list[Problem]:
    problems = []
    for index, name in enumerate(names):
        if not name.startswith(BUILTIN):
            problems += _file(f"{key}.{index}", name, made_later)
        elif f"{name.removeprefix(BUILTIN)}_heldout" not in GSM8K_ASSETS:
            what = "the package ships no such evaluation set"
            problems.append(Problem(f"{key}.{index}", name, what, f"{BUILTIN}gsm8k, or a jsonl file"))
    return problems


def corpora_are_prepared(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if not isinstance(cfg.stage, PretrainStage):
        return []
    folder = Path(cfg.data.dir) / "corpus"
    return [
        problem
        for index, corpus in enumerate(cfg.data.corpora)
        if corpus.weight > 0
        for ending in (".bin", ".idx")
        for problem in _file(f"data.corpora.{index}.name", folder / (corpus.name + ending), made_later)
    ]


def tokenizer_fits(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    """The tokenizer has exactly the entries that the config says; the prepare stage trains or copies it anew."""
    folder = cfg.data.tokenizer if isinstance(cfg.stage, PrepareStage) else f"{cfg.data.dir}/tokenizer"
    if folder is None or not (path := Path(folder) / "tokenizer.json").is_file():
        return []
    key, expected = "data.tokenizer_vocab_size", cfg.data.tokenizer_vocab_size
    try:
        tokenizer = json.loads(path.read_text())
        entries = set(tokenizer["model"]["vocab"]) | {token["content"] for token in tokenizer["added_tokens"]}
    except (ValueError, KeyError, TypeError):
        what = f"{path} is not a tokenizer file"
        if isinstance(cfg.stage, PrepareStage):
            return [Problem("data.tokenizer", folder, what, "a folder with a model's tokenizer.json")]
        return [Problem("data.dir", cfg.data.dir, what, "delete it and run prepare again")]
    if len(entries) == expected:
        return []
    what = f"vocabulary mismatch: {path} has {len(entries)} entries"
    return [Problem(key, expected, what, f"{len(entries)}, or another data.dir to prepare anew")]


def tokenizer_is_there(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    folder = cfg.data.tokenizer
    if not isinstance(cfg.stage, PrepareStage) or folder is None:
        return []
    problems = _file("data.tokenizer", Path(folder) / "tokenizer.json", made_later)
    fix = "a folder with tokenizer.json and tokenizer_config.json, such as hf/ in the run folder of tools/import_hf.py"
    return [replace(problem, fix=fix) for problem in problems]


def start_has_a_checkpoint(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if isinstance(cfg.stage, PrepareStage | PairsStage) or cfg.stage.init_from is None:
        return []
    return _checkpoint("stage.init_from", cfg.stage.init_from, made_later)


def preferences_have_checkpoints(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage):
        return []
    return [
        problem
        for index, one in enumerate(cfg.reward.preferences)
        for problem in _checkpoint(f"reward.preferences.{index}.checkpoint", one.checkpoint, made_later)
    ]


def samples_are_there(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if not isinstance(cfg.stage, PairsStage):
        return []
    folder = Path(cfg.stage.samples_from)
    if _comes_later(folder, made_later) or any(folder.glob("**/samples/from_*.jsonl")):
        return []
    fix = "the run folder of a reject or collect stage; run that stage first"
    return [Problem("stage.samples_from", str(folder), "no samples there", fix)]


def dataset_exists(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if isinstance(cfg.stage, SftStage | RewardModelStage):
        return _file("stage.dataset", cfg.stage.dataset, made_later)
    if not isinstance(cfg.stage, RejectStage):
        return []
    named = {}
    if cfg.stage.mix is not None:
        named["stage.mix"] = cfg.stage.mix
    for name, judge in (("judge", cfg.stage.judge), ("rewrite", cfg.stage.rewrite)):
        if judge is not None and judge.api_key_file is not None:
            named[f"stage.{name}.api_key_file"] = judge.api_key_file
    problems = _evaluation_sets("stage.decontaminate", cfg.stage.decontaminate, made_later)
    return problems + [problem for key, path in named.items() for problem in _file(key, path, made_later)]


def prompts_exist(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    problems = []
    if isinstance(cfg.stage, GrpoStage | RejectStage):
        problems += _file("stage.prompts", cfg.stage.prompts, made_later)
    if isinstance(cfg.stage, GrpoStage) and cfg.stage.late_prompts is not None:
        problems += _file("stage.late_prompts.prompts", cfg.stage.late_prompts.prompts, made_later)
    evaluates = isinstance(cfg.stage, EvaluateStage) and cfg.data.tasks
    if evaluates or (cfg.evaluate_after and not isinstance(cfg.stage, PrepareStage)):
        problems += _file("data.dir", Path(cfg.data.dir) / "prompts" / "heldout.jsonl", made_later)
    return problems


def _checkpoint(key: str, run_dir: str, made_later: MadeLater) -> list[Problem]:
    folder = Path(run_dir)
    if _comes_later(folder, made_later) or checkpoints(folder):
        return []
    what = "no finished checkpoint there" if folder.is_dir() else "no such run folder"
    return [Problem(key, run_dir, what, "a run folder with checkpoints/step_*/_DONE; run that stage first")]


def suites_exist(cfg: RunConfig, made_later: MadeLater) -> list[Problem]:
    if not isinstance(cfg.stage, EvaluateStage):
        return []
    return [
        replace(problem, fix="the suite's file (docs/evaluation.md says what it holds; none is shipped)")
        if problem.what == NO_FILE
        else problem
        for index, suite in enumerate(cfg.eval.suites)
        for problem in _file(f"eval.suites.{index}.path", suite.path, made_later)
    ]


def _comes_later(path: Path, made_later: MadeLater) -> bool:
    return any(path == made or made in path.parents for made in made_later)


def _file(key: str, path: str | Path, made_later: MadeLater) -> list[Problem]:
    path = Path(path)
    if path.is_file():
        if path.stat().st_size > 0:
            return []
        return [Problem(key, str(path), "this file is empty", "write it again, or name another one")]
    if path.exists():
        return [Problem(key, str(path), "not a file", "name a file")]
    if _comes_later(path, made_later):
        return []
    return [Problem(key, str(path), NO_FILE, "correct the path, put it there, or run the stage that writes it")]


def _asset(key: str, name: str) -> list[Problem]:
    stems = {file.name.split(".")[0] for file in ASSETS.iterdir() if file.suffix != ".md"}
    known = sorted({*stems, *(stem.rsplit("_", 1)[0] for stem in stems), *GENERATED})
    if name in known:
        return []
    return [
        Problem(key, BUILTIN + name, "the package ships no such data", f"one of {', '.join(known)} after {BUILTIN}")
    ]


RULES = (
    sources_exist,
    evaluation_sets_exist,
    corpora_are_prepared,
    tokenizer_is_there,
    tokenizer_fits,
    start_has_a_checkpoint,
    preferences_have_checkpoints,
    samples_are_there,
    dataset_exists,
    prompts_exist,
    suites_exist,
)
