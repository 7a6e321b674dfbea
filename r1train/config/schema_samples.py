"""Stages on a model's samples: rejection sampling, cold start from a model, preference pairs, reward models."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint (`vllm serve`, or any other) that judges or rewrites responses.

    url: up to and with /v1. tries: per question; the pause after a failed one starts at wait_s and doubles, up to 30 s.
    parallel: questions under way at a time. api_key_file: a file whose text is sent as the bearer token.
    most_failures: share of questions without a usable answer above which the stage ends; what was answered is kept.
    """

    url: str
    model: str
    temperature: float = 0.0
    max_tokens: int = 4096
    timeout_s: float = 300.0
    tries: int = 5
    wait_s: float = 1.0
    parallel: int = 16
    api_key_file: str | None = None
    most_failures: float = 0.1


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which samples are readable (R1 section 2.3.3); correctness, format and truncation are always looked at.

    language: least share of target-language words in the thinking. paragraph_words: most words of one paragraph of it;
    code_in_thinking: whether it may hold a fenced code block; repetition: most share of repeated n-grams of
    repetition_words words. null: not looked at.
    """

    language: float | None = 0.9
    paragraph_words: int | None = None
    code_in_thinking: bool = True
    repetition: float | None = None
    repetition_words: int = 20


@dataclass(frozen=True, kw_only=True)
class RejectStage:
    """Sample many, keep what verifies and reads well, write an SFT set (R1 section 2.3.3). docs/r1_stages.md.

    keep_per_prompt: at most this many responses of one prompt, chosen by keep_by among those that pass. mix: a jsonl
    whose rows are added (non-reasoning data), so many that they make mix_share of the set; null: all of them.
    part of parts: this run only samples every parts-th prompt; a run without parts gathers them and writes the set.
    judge: a served model that has to call a response correct; rewrite: one that makes it readable. near_duplicate:
    drop a response whose word 5-grams overlap an earlier one's by this share or more. decontaminate: jsonl files whose
    n-grams (decontaminate_words) no row may hold. review: stop after writing review.jsonl for people to decide.
    """

    name: Literal["reject"]
    prompts: str
    num_prompts: int
    samples_per_prompt: int
    keep_per_prompt: int
    mix: str | None
    init_from: str
    keep_by: Literal["order", "score", "shortest", "longest"] = "order"
    mix_share: float | None = None
    part: int = 1
    parts: int = 1
    filters: FilterConfig = field(default_factory=FilterConfig)
    judge: JudgeConfig | None = None
    rewrite: JudgeConfig | None = None
    near_duplicate: float | None = None
    decontaminate: tuple[str, ...] = ()
    decontaminate_words: int = 10
    review: bool = False


@dataclass(frozen=True, kw_only=True)
class CollectStage(RejectStage):
    """Cold-start examples from a model's own samples (R1 section 2.3.1): rejection sampling with other defaults."""

    name: Literal["collect"]  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class PairsStage:
    """Two responses of each prompt and which is better -> pairs for a reward model (R1 section 2.2.2).

    samples_from: run folder of a reject or collect stage. prefer: a served judge, or a rule of reward/pairs.py. The
    judge sees each pair judgements times in random order; the mean verdict (-2 to 2) must exceed least_difference.
    scored: what the reward model will see, the text after the thinking or the whole response. balance_lengths: drop
    pairs until chosen and rejected are equally long on the whole.
    """

    name: Literal["pairs"]
    samples_from: str
    prefer: Literal["judge", "shorter", "longer", "worked", "line"]
    scored: Literal["summary", "response"]
    pairs_per_prompt: int
    judge: JudgeConfig | None = None
    judgements: int = 4
    least_difference: float = 1.0
    balance_lengths: bool = False


@dataclass(frozen=True, kw_only=True)
class RewardModelStage:
    """A scalar head on the policy's architecture, trained on preferences (R1 section 2.2.2).

    kind: pairwise (rows prompt, chosen, rejected; Bradley-Terry) or pointwise (rows prompt, response, label 0 or 1).
    scored: the text after the thinking (helpfulness) or the whole response (safety). batch_size: pairs or responses
    per optimizer step; seq_length: packed tokens of one micro-batch, which both responses of a pair must fit.
    heldout_share: of the prompts, kept for the evaluation. max_sample_tokens: of one prompt and response; null: what
    fits.
    """

    name: Literal["reward_model"]
    kind: Literal["pairwise", "pointwise"]
    scored: Literal["summary", "response"]
    dataset: str
    steps: int
    seq_length: int
    batch_size: int
    heldout_share: float
    save_every_steps: int
    keep_checkpoints: int
    init_from: str
    max_sample_tokens: int | None = None
