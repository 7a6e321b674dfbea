"""Generation, rewards and the RL algorithm."""

from dataclasses import dataclass, field
from typing import Literal

from r1train.config.schema_eval import AnswerPlace
from r1train.config.schema_reward import CodeConfig, PreferenceConfig


@dataclass(frozen=True, kw_only=True)
class AsynchronyConfig:
    """How old the weights may be that draw a rollout; docs/rl.md.

    mode: none, the weights that its updates start from; one-step-off, those that the updates before it start from;
    partial, a sample gets new_tokens tokens per rollout and goes on in the next one, with newer weights, and in_flight
    times as many groups are under way as a rollout trains on.
    """

    mode: Literal["none", "one-step-off", "partial"] = "none"
    new_tokens: int | None = None
    in_flight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How samples are drawn. batch_size: sequences that one process decodes at a time.

    engine: native generates on the training weights, vllm on a copy that is pushed to it (docs/rollout.md).
    store_groups: finished groups are stored as they come, so that a killed run samples only what is missing.
    keep_stored: finished rollouts whose samples stay in <run>/rollouts to be looked at; null: all.
    cuda_graphs: decode steps are replayed as CUDA graphs; false: launched kernel by kernel. The native engine does so
    too where a graph cannot be (docs/rollout.md). For vllm: gpu_memory_share, its share of the GPU while awake;
    push_mib, the weights that are under way to it at a time; fp8, it computes with DeepSeek's FP8 blocks, quantised on
    the way to it; engine_tp, consecutive ranks that share one engine, its layers cut over them (tensor parallelism),
    and engine_whole_experts, its experts whole on one of them each (expert parallelism) instead of cut.
    """

    engine: Literal["native", "vllm"]
    temperature: float
    top_p: float
    max_prompt_tokens: int
    max_response_tokens: int
    batch_size: int
    store_groups: bool = False
    keep_stored: int | None = 10
    asynchrony: AsynchronyConfig = field(default_factory=AsynchronyConfig)
    cuda_graphs: bool = True
    gpu_memory_share: float = 0.4
    push_mib: int = 1024
    fp8: bool = False
    engine_tp: int = 1
    engine_whole_experts: bool = False


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the reward's parts (R1: accuracy and format equal; language consistency from RL stage 1 on).

    repetition: weight of the share of repeated n-grams (n = repetition_words), which is subtracted. preferences: reward
    models that the grpo stage adds. answer_from: where a response's answer is looked for, the first place that has one
    counts; the format is right where the first of them does (tags: where the whole response has R1's form).
    """

    name: str
    accuracy: float
    format: float
    language: float
    repetition: float = 0.0
    repetition_words: int = 20
    grader_timeout_s: float
    grader_processes: int
    code: CodeConfig = field(default_factory=CodeConfig)
    preferences: tuple[PreferenceConfig, ...] = ()
    answer_from: tuple[AnswerPlace, ...] = ("tags",)


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """What is done about an engine whose probability mu differs from the trainer's pi_old; docs/rl.md has the formulas.

    weight: of each token's policy loss, from rho = pi_old / mu. sequence_mask: leave out the policy loss of whole
    sequences by their product ("ratio") or mean ("geometric") of rho. A rule that is named needs the bounds it reads.
    off_policy_delta: leave out sequences with A < 0 and mean ln(mu / pi_theta) above it (DeepSeek-V3.2); null: none.
    """

    weight: Literal["none", "tis", "sequence-tis", "icepop"] = "none"
    weight_low: float | None = None
    weight_high: float | None = None
    sequence_mask: Literal["none", "ratio", "geometric"] = "none"
    mask_low: float | None = None
    mask_high: float | None = None
    off_policy_delta: float | None = None


@dataclass(frozen=True, kw_only=True)
class OverlongConfig:
    """Responses near the token budget (DAPO section 3.4). mask: truncated ones are not trained on. penalty: the reward
    falls from 0 to -1 over the last buffer_tokens of the budget.
    """

    rule: Literal["none", "mask", "penalty"] = "none"
    buffer_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class DynamicSamplingConfig:
    """Which groups a rollout keeps (DAPO section 3.2). all: as they come. mixed: those with right and wrong samples (of
    tasks without a right answer those whose rewards differ), asking for more prompts until it is full: oversample times
    what is missing per try, at most max_tries tries.
    """

    keep: Literal["all", "mixed"] = "all"
    oversample: float = 1.0
    max_tries: int = 1


@dataclass(frozen=True, kw_only=True)
class StopIf:
    """Hard stops: <gauge>_above / <gauge>_below, null where there is none. The gauges are those of metrics.jsonl."""

    logprob_gap_mean_above: float | None = None
    logprob_gap_max_above: float | None = None
    logprob_gap_k3_above: float | None = None
    truncated_share_above: float | None = None
    response_tokens_above: float | None = None
    grader_errors_above: float | None = None
    reward_below: float | None = None
    flipped_experts_share_above: float | None = None
    entropy_below: float | None = None
    kl_above: float | None = None


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """The algorithm: advantage, policy loss, KL, aggregation, and the guards around them. docs/rl.md has the formulas.

    policy_loss: clip (GRPO, Dr. GRPO, DAPO), gspo, gspo-token, cispo. clip_low/clip_high: the ratio is kept within
    [1 - clip_low, 1 + clip_high]. kl_estimator: of KL(policy, reference) at each token, inside the loss.
    record_routing: the engine tells which experts each token went to. routing_replay: the experts that the policy's
    passes use: their own (none), the engine's (R3), or for the update those of the pass over the old policy (R2).
    replay_reference: the reference policy uses them, too. reference_offload: the reference lies in host memory but for
    its own passes. offload_during_rollout: so do master weights, moments and gradient buffers while a rollout is drawn.
    old_logprobs: those of the policy that a rollout's updates begin with come from a pass before them (pass), or, where
    there is one update per rollout, from the forward of that update (update), which saves the pass. sequence_loss_coef:
    of V3's balance loss beside the policy loss; 0 leaves a policy alone that has nothing to learn.
    """

    name: str
    policy_loss: Literal["clip", "gspo", "gspo-token", "cispo"]
    clip_low: float
    clip_high: float
    kl_coef: float
    kl_estimator: Literal["k1", "k2", "k3", "unbiased"]
    advantage_std: Literal["population", "sample", "none"]
    aggregation: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    record_routing: bool = True
    old_logprobs: Literal["pass", "update"] = "pass"
    routing_replay: Literal["none", "engine", "old"] = "none"
    replay_reference: bool = False
    reference_offload: bool = False
    offload_during_rollout: bool = False
    sequence_loss_coef: float = 0.0
    stop_if: StopIf = field(default_factory=StopIf)
