"""Rules about the data's composition (the files themselves: check_files.py)."""

import math
from collections import Counter

from r1train.config.names import FILE_NAME
from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.config.schema import PretrainStage, RunConfig
from r1train.errors import Problem


def names_are_unique(cfg: RunConfig) -> list[Problem]:
    problems = []
    for key, items in (("data.corpora", cfg.data.corpora), ("data.tasks", cfg.data.tasks)):
        counts = Counter(item.name for item in items)
        for name, count in counts.items():
            if count > 1:
                problems.append(Problem(key, name, f"this name stands {count} times", "give each its own name"))
    return problems


def corpus_names_are_file_names(cfg: RunConfig) -> list[Problem]:
    """<data.dir>/corpus/<name>.bin, and <name>_heldout.bin for the held-out documents."""
    problems = []
    for index, corpus in enumerate(cfg.data.corpora):
        key, name = f"data.corpora.{index}.name", corpus.name
        if not FILE_NAME.fullmatch(name):
            what = "files are named after it: letters, digits, '_', '.' and '-' only, the first a letter or digit"
            problems.append(Problem(key, name, what, "e.g. web_2024"))
        elif name.endswith(HELDOUT_SUFFIX):
            what = f"{HELDOUT_SUFFIX} at the end is for the held-out documents of the corpus before it"
            problems.append(Problem(key, name, what, "another name"))
    return problems


def corpus_weights_count(cfg: RunConfig) -> list[Problem]:
    corpora = cfg.data.corpora
    problems = [
        Problem(f"data.corpora.{index}.weight", corpus.weight, "below 0", "0 leaves the corpus out")
        for index, corpus in enumerate(corpora)
        if corpus.weight < 0
    ]
    needed = isinstance(cfg.stage, PretrainStage) or cfg.data.tokenizer is None
    if (corpora or needed) and sum(corpus.weight for corpus in corpora) <= 0:
        weights = [corpus.weight for corpus in corpora]
        problems.append(Problem("data.corpora", weights, "no corpus has a weight above 0", "give one a weight"))
    return problems


def task_styles_are_shares(cfg: RunConfig) -> list[Problem]:
    problems = []
    for index, task in enumerate(cfg.data.tasks):
        shares = task.styles.values()
        is_share = min(shares, default=0.0) >= 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)
        if task.cold_start > 0 and not is_share:
            what = "the shares of the cold-start styles must be 0 or more and sum to 1"
            problems.append(Problem(f"data.tasks.{index}.styles", task.styles, what, "e.g. {steps: 0.5, direct: 0.5}"))
    return problems


def task_has_problems(cfg: RunConfig) -> list[Problem]:
    return [
        Problem(
            f"data.tasks.{index}", task.name, "train, heldout and cold_start are all 0", "ask for some, or remove it"
        )
        for index, task in enumerate(cfg.data.tasks)
        if task.train == task.heldout == task.cold_start == 0
    ]


def worked_corpus_has_examples(cfg: RunConfig) -> list[Problem]:
    uses = any(corpus.source == "builtin:worked" and corpus.weight > 0 for corpus in cfg.data.corpora)
    if not uses or cfg.data.worked_examples > 0:
        return []
    what = "the corpus builtin:worked would be empty"
    return [Problem("data.worked_examples", cfg.data.worked_examples, what, "above 0, or remove that corpus")]


def passkey_corpora_have_settings(cfg: RunConfig) -> list[Problem]:
    problems = []
    for index, corpus in enumerate(cfg.data.corpora):
        key, passkey = f"data.corpora.{index}.passkey", corpus.passkey
        if passkey is None and corpus.source == "builtin:passkey":
            what = "builtin:passkey needs to know how long and how many its documents are"
            problems.append(Problem(key, None, what, "e.g. {max_tokens: 512, documents: 10000}"))
        elif passkey is not None and corpus.source != "builtin:passkey":
            what = "only the source builtin:passkey is made from it"
            problems.append(Problem(key, corpus.source, what, "null, or source builtin:passkey"))
        if passkey is not None and passkey.digits < 2:
            what = "one-digit keys cannot be kept apart from those that the evaluation asks for"
            problems.append(Problem(f"{key}.digits", passkey.digits, what, "2 or more"))
    return problems


def heldout_fraction_is_a_share(cfg: RunConfig) -> list[Problem]:
    share = cfg.data.heldout_fraction
    if 0 <= share < 1:
        return []
    return [Problem("data.heldout_fraction", share, "outside [0, 1)", "e.g. 0.02; 0 holds nothing out")]


def fim_rate_is_a_share(cfg: RunConfig) -> list[Problem]:
    rate = cfg.data.fim_rate
    return [] if 0 <= rate < 1 else [Problem("data.fim_rate", rate, "outside [0, 1)", "V3 uses 0.1; 0 cuts nothing")]


def boundary_split_rate_is_a_share_of_something(cfg: RunConfig) -> list[Problem]:
    """Our own tokenizers have tokens of punctuation and line breaks only by DeepSeek-V3's pre-tokenizer."""
    key, rate = "data.boundary_split_rate", cfg.data.boundary_split_rate
    if not 0 <= rate < 1:
        return [Problem(key, rate, "outside [0, 1)", "e.g. 0.1; 0 splits nothing")]
    if rate > 0 and cfg.data.tokenizer is None and cfg.data.pre_tokenizer == "digits":
        what = "the pre-tokenizer digits makes no tokens of punctuation and line breaks"
        return [Problem(key, rate, what, "0, or data.pre_tokenizer=deepseek_v3")]
    return []


def tasks_from_files_have_them(cfg: RunConfig) -> list[Problem]:
    problems = []
    for index, task in enumerate(cfg.data.tasks):
        if "{question}" not in task.template:
            what = "the question is not in the template"
            problems.append(
                Problem(f"data.tasks.{index}.template", task.template, what, "write {question} where it belongs")
            )
        wanted = {"train_file": max(task.train, task.cold_start), "heldout_file": task.heldout}
        paths = {"train_file": task.train_file, "heldout_file": task.heldout_file}
        if set(paths.values()) == {None}:
            continue
        for name, path in paths.items():
            if path is None and wanted[name] > 0:
                what = f"{wanted[name]} problems are asked for, and those of the other set come from a file"
                problems.append(Problem(f"data.tasks.{index}.{name}", None, what, "a file, or 0 problems of that set"))
    return problems


def isolated_documents_come_one_by_one(cfg: RunConfig) -> list[Problem]:
    """Rows of isolated documents have lengths of their own, so each is a micro-batch."""
    if not isinstance(cfg.stage, PretrainStage) or not cfg.data.mask_across_documents:
        return []
    size = cfg.stage.micro_batch_size
    what = "data.mask_across_documents takes one sequence at a time"
    return [] if size == 1 else [Problem("stage.micro_batch_size", size, what, "1")]


def batch_ramp_ends_at_the_batch(cfg: RunConfig) -> list[Problem]:
    """The ramp only grows, from at least lr.batch_multiple to stage.batch_size."""
    ramp = cfg.lr.batch_size
    if ramp is None or not isinstance(cfg.stage, PretrainStage):
        return []
    key, problems = "lr.batch_size", []
    sizes, least = [ramp.start, *(part.to for part in ramp.segments)], cfg.lr.batch_multiple
    if sizes[-1] != cfg.stage.batch_size:
        what = f"ends at {sizes[-1]:g} sequences, but stage.batch_size is {cfg.stage.batch_size}"
        problems.append(Problem(key, sizes, what, "make the two equal, or lr.batch_size=null"))
    if sizes[0] < least:
        what = f"starts below lr.batch_multiple = {least}"
        problems.append(Problem(f"{key}.start", sizes[0], what, f"at least {least}"))
    if sizes != sorted(sizes):
        problems.append(Problem(f"{key}.segments", sizes, "not a growing ramp", "sizes that grow"))
    return problems


RULES = (
    names_are_unique,
    corpus_names_are_file_names,
    corpus_weights_count,
    task_styles_are_shares,
    task_has_problems,
    worked_corpus_has_examples,
    passkey_corpora_have_settings,
    heldout_fraction_is_a_share,
    fim_rate_is_a_share,
    boundary_split_rate_is_a_share_of_something,
    tasks_from_files_have_them,
    isolated_documents_come_one_by_one,
    batch_ramp_ends_at_the_batch,
)
