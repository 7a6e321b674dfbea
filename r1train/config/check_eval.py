"""Rules about evaluation: suites, their templates and answers, and passkey retrieval."""

import re
from collections import Counter
from collections.abc import Iterator

from r1train.config.names import FILE_NAME
from r1train.config.schema import EvaluateStage, RunConfig
from r1train.config.schema_eval import SuiteConfig, SuiteKind
from r1train.errors import Problem

FIELDS: dict[SuiteKind, tuple[str, ...]] = {
    "number": ("question",),
    "math": ("question",),
    "exact": ("question",),
    "choice": ("question", "choices"),
    "humaneval": ("question", "entry_point"),
    "mbpp": ("question", "tests"),
    "ifeval": ("question",),
}
# Files beside the suites' own in <run>/eval.
TAKEN = ("perplexity", "passkey", "samples")


def suite_names_are_files(cfg: RunConfig) -> list[Problem]:
    counts = Counter(suite.name for suite in cfg.eval.suites)
    taken = {*TAKEN, *(task.name for task in cfg.data.tasks)}
    problems = []
    for key, suite in _suites(cfg):
        if not FILE_NAME.fullmatch(suite.name):
            what = "names a file, so it takes letters, digits, . _ and - only"
            problems.append(Problem(f"{key}.name", suite.name, what, "such as aime24"))
        elif counts[suite.name] > 1 or suite.name in taken or suite.name.startswith("samples_"):
            what = "another suite, a task of data.tasks or a file of the evaluation has this name"
            problems.append(Problem(f"{key}.name", suite.name, what, "another name"))
    return problems


def templates_have_their_fields(cfg: RunConfig) -> list[Problem]:
    problems = []
    for key, suite in _suites(cfg):
        named = set(re.findall(r"\{([a-z_]+)\}", suite.template.replace(r"\boxed{", "")))
        known = FIELDS[suite.kind]
        if "question" not in named:
            what = "the question is not in the template"
            problems.append(Problem(f"{key}.template", suite.template, what, "write {question} where it belongs"))
        for name in sorted(named - set(known)):
            what = f"suites of kind {suite.kind} have no field {{{name}}}"
            fix = "one of " + ", ".join(f"{{{field}}}" for field in known)
            problems.append(Problem(f"{key}.template", suite.template, what, fix))
    return problems


def answers_have_a_place(cfg: RunConfig) -> list[Problem]:
    places = {"reward": cfg.reward.answer_from, **{key: suite.answer_from for key, suite in _suites(cfg)}}
    return [
        Problem(f"{key}.answer_from", [], "no answer could be found", "such as [tags, boxed]")
        for key, answer_from in places.items()
        if not answer_from
    ]


def suite_sampling_fits(cfg: RunConfig) -> list[Problem]:
    """The rules of eval's own sampling, for what a suite changes."""
    problems = []
    positions = cfg.model.distinct_positions
    for key, suite in _suites(cfg):
        if suite.temperature is not None and suite.temperature < 0:
            problems.append(Problem(f"{key}.temperature", suite.temperature, "below 0", "0 (greedy) or more"))
        if suite.top_p is not None and not 0 < suite.top_p <= 1:
            problems.append(Problem(f"{key}.top_p", suite.top_p, "outside (0, 1]", "1.0 keeps every token"))
        temperature = cfg.eval.temperature if suite.temperature is None else suite.temperature
        samples = suite.samples_per_problem or cfg.eval.samples_per_problem
        if temperature == 0 and samples > 1:
            what = "greedy decoding gives the same answer every time"
            problems.append(Problem(f"{key}.samples_per_problem", samples, what, "1, or a temperature above 0"))
        prompt = suite.max_prompt_tokens or cfg.rollout.max_prompt_tokens
        response = suite.max_response_tokens or cfg.eval.max_response_tokens
        if prompt + response > positions:
            what = f"with a prompt of {prompt} beyond the {positions} positions that the model can tell apart"
            problems.append(Problem(f"{key}.max_response_tokens", response, what, f"at most {positions - prompt}"))
    return problems


def passkey_fits(cfg: RunConfig) -> list[Problem]:
    passkey = cfg.eval.passkey
    if passkey is None or not isinstance(cfg.stage, EvaluateStage):
        return []
    problems = []
    room = cfg.model.distinct_positions - passkey.max_response_tokens
    for name, values in (("lengths", passkey.lengths), ("depths", passkey.depths)):
        if not values or len(set(values)) < len(values):
            problems.append(Problem(f"eval.passkey.{name}", values, "empty, or a value twice", "each value once"))
    if passkey.digits < 2:
        what = "one-digit keys cannot be kept apart from those of the corpus builtin:passkey"
        problems.append(Problem("eval.passkey.digits", passkey.digits, what, "2 or more"))
    for length in passkey.lengths:
        if length > room:
            what = f"with {passkey.max_response_tokens} tokens of response beyond what the model can tell apart"
            problems.append(Problem("eval.passkey.lengths", length, what, f"at most {room}"))
    problems += [
        Problem("eval.passkey.depths", depth, "outside 0 to 1", "a share of the text before the number")
        for depth in passkey.depths
        if not 0 <= depth <= 1
    ]
    return problems


def perplexity_length_fits(cfg: RunConfig) -> list[Problem]:
    given, positions, tp = cfg.eval.perplexity_length, cfg.model.distinct_positions, cfg.parallel.tp
    if given is not None and given > positions:
        what = f"beyond the {positions} positions that the model can tell apart"
        return [Problem("eval.perplexity_length", given, what, "less, or null")]
    length = cfg.eval.window_length(positions)
    if not isinstance(cfg.stage, EvaluateStage) or not cfg.data.corpora or length % tp == 0:
        return []
    what = f"sequence parallelism cuts windows of {length} tokens over parallel.tp = {tp} ranks"
    return [Problem("eval.perplexity_length", given, what, f"a multiple of {tp}")]


def _suites(cfg: RunConfig) -> Iterator[tuple[str, SuiteConfig]]:
    """The suites with their keys, where the stage runs them."""
    if isinstance(cfg.stage, EvaluateStage):
        for index, suite in enumerate(cfg.eval.suites):
            yield f"eval.suites.{index}", suite


RULES = (
    suite_names_are_files,
    templates_have_their_fields,
    answers_have_a_place,
    suite_sampling_fits,
    passkey_fits,
    perplexity_length_fits,
)
