"""RunConfig: the one place that joins the parts. Science-critical values have no default here; YAML states them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from r1train.config.schema_model import AnyModelConfig
from r1train.config.schema_parallel import ClusterConfig, ParallelConfig
from r1train.config.schema_rl import EvalConfig, RewardConfig, RlConfig, RolloutConfig
from r1train.config.schema_train import DataConfig, LrConfig, OptimConfig


@dataclass(frozen=True, kw_only=True)
class PrepareStage:
    """Raw text and problem generators -> tokenizer, .bin/.idx corpora, cold-start examples, prompt sets."""

    name: Literal["prepare"]


@dataclass(frozen=True, kw_only=True)
class PretrainStage:
    """Next-token training on the blended corpora. batch_size in sequences per optimizer step, over all ranks."""

    name: Literal["pretrain"]
    steps: int
    seq_length: int
    batch_size: int
    micro_batch_size: int
    save_every_steps: int
    keep_checkpoints: int
    init_from: str | None


@dataclass(frozen=True, kw_only=True)
class SftStage:
    """Supervised fine-tuning on chat examples, packed to seq_length with isolated samples, loss on responses only.

    batch_size: packed sequences per optimizer step. dataset: jsonl of prompt/response rows. init_from: run folder.
    """

    name: Literal["sft"]
    steps: int
    seq_length: int
    batch_size: int
    save_every_steps: int
    keep_checkpoints: int
    init_from: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class GrpoStage:
    """Group relative policy optimisation (DeepSeekMath section 4; R1 section 2.2).

    A step is one policy update on prompts_per_step * samples_per_prompt responses (R1: 32 * 16). One rollout samples
    for minibatches_per_step steps at once (R1: 16, that is 8,192 responses) and is dealt out at random. The algorithm
    is RunConfig.rl. seq_length: packed tokens of one micro-batch.
    reference_refresh_steps: steps after which the reference becomes the current policy (R1: 400).
    """

    name: Literal["grpo"]
    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    minibatches_per_step: int
    seq_length: int
    reference_refresh_steps: int
    save_every_steps: int
    keep_checkpoints: int
    init_from: str
    prompts: str


@dataclass(frozen=True, kw_only=True)
class RejectStage:
    """Sample many, keep what verifies and reads well, write an SFT set (R1 section 2.3.3).

    keep_per_prompt: at most this many responses of one prompt. mix: a jsonl whose rows are added (non-reasoning data).
    """

    name: Literal["reject"]
    prompts: str
    num_prompts: int
    samples_per_prompt: int
    keep_per_prompt: int
    mix: str | None
    init_from: str


@dataclass(frozen=True, kw_only=True)
class EvaluateStage:
    """Evaluation of one checkpoint on every task, perplexity included."""

    name: Literal["evaluate"]
    init_from: str


StageConfig = Annotated[
    PrepareStage | PretrainStage | SftStage | GrpoStage | RejectStage | EvaluateStage, Field(discriminator="name")
]
TRAINING_STAGES = ("pretrain", "sft", "grpo")


@dataclass(frozen=True, kw_only=True)
class ScheduleStep:
    """One stage of a schedule. id names its run folder; init_from/dataset_from: ids of earlier steps.

    set: dotted config keys that this step changes.
    """

    id: str
    stage: str
    title: str
    init_from: str | None = None
    dataset_from: str | None = None
    set: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Order of stages."""

    name: str
    steps: tuple[ScheduleStep, ...]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of one stage. root holds one folder per step id; step is this run's id."""

    name: str
    root: str
    step: str
    seed: int
    evaluate_after: bool
    model: AnyModelConfig
    parallel: ParallelConfig
    cluster: ClusterConfig
    data: DataConfig
    optim: OptimConfig
    lr: LrConfig
    rollout: RolloutConfig
    reward: RewardConfig
    rl: RlConfig
    eval: EvalConfig
    stage: StageConfig
    schedule: ScheduleConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.root) / self.step
