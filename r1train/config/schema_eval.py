"""Evaluation: the prepared held-out problems, benchmark files, perplexity and passkey retrieval."""

from dataclasses import dataclass
from typing import Literal

SuiteKind = Literal["number", "math", "choice", "exact", "humaneval", "mbpp", "ifeval"]
AnswerPlace = Literal["tags", "boxed", "hashes", "number", "text"]

# Of a held-out window where only the model sets a limit: V3's pre-training length.
USUAL_WINDOW = 4096


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """One benchmark file (.jsonl, plain or compressed). docs/evaluation.md has the fields of each kind.

    name: of its report, <run>/eval/<name>.json. template: the prompt, {question} and the kind's other fields filled in.
    answer_from: where the answer is looked for, the first place that has one counts. problems: the first so many, null:
    all. What is null below is taken from eval, max_prompt_tokens from rollout.
    """

    name: str
    path: str
    kind: SuiteKind
    template: str = "{question}"
    answer_from: tuple[AnswerPlace, ...] = ("tags",)
    problems: int | None = None
    samples_per_problem: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class PasskeyConfig:
    """Retrieval of a number hidden in filler text (arXiv 2305.16300), asked greedily.

    lengths: tokens of the prompt; depths: where the number stands, 0 at the beginning, 1 at the end; problems: of each
    length and depth. form: text, continued (base models), or chat. batch_tokens: prompt tokens that one process holds
    at a time.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    problems: int
    digits: int = 5
    form: Literal["text", "chat"] = "text"
    max_response_tokens: int = 16
    batch_tokens: int = 262_144


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation: pass@1 as the mean over samples_per_problem of each problem.

    problems_per_task .. max_response_tokens: of the prepared held-out problems, after a stage and in stage evaluate.
    temperature 0: greedy. perplexity_tokens: at most so many held-out tokens of each corpus; perplexity_length: tokens
    of a window in stage evaluate (pre-training uses its own), null: the model's positions, USUAL_WINDOW at most.
    suites, passkey: in stage evaluate only. folder: for ${eval.folder} in the paths of suites.
    """

    problems_per_task: int
    samples_per_problem: int
    temperature: float
    top_p: float
    max_response_tokens: int
    perplexity_tokens: int = 32_768
    perplexity_length: int | None = None
    folder: str | None = None
    suites: tuple[SuiteConfig, ...] = ()
    passkey: PasskeyConfig | None = None

    def window_length(self, positions: int) -> int:
        """Tokens of a held-out window in stage evaluate, for a model of so many positions."""
        return self.perplexity_length or min(USUAL_WINDOW, positions)
