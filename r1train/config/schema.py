"""RunConfig: the one place that joins the parts. Science-critical values have no default here; YAML states them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from r1train.config.schema_eval import EvalConfig
from r1train.config.schema_model import AnyModelConfig
from r1train.config.schema_parallel import ClusterConfig, ParallelConfig
from r1train.config.schema_rl import RewardConfig, RlConfig, RolloutConfig
from r1train.config.schema_samples import CollectStage, PairsStage, RejectStage, RewardModelStage
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
class DistillStage(SftStage):
    """SFT of a student on what a teacher wrote, and nothing else (R1 section 2.4): init_from is the student's base."""

    name: Literal["distill"]  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LatePrompts:
    """A second set of prompts: from update from_step on (1-based), this share of the prompts of every rollout."""

    prompts: str
    share: float
    from_step: int


@dataclass(frozen=True, kw_only=True)
class GrpoStage:
    """Group relative policy optimisation (DeepSeekMath section 4; R1 section 2.2).

    A step is one policy update on prompts_per_step * samples_per_prompt responses (R1: 32 * 16). One rollout samples
    for minibatches_per_step steps at once (R1: 16, that is 8,192 responses) and is dealt out at random. The algorithm
    is RunConfig.rl. seq_length: packed tokens of one micro-batch.
    reference_refresh_steps: steps after which the reference becomes the current policy (R1: 400). late_prompts: a
    second set, mixed in towards the end (R1's second RL: general prompts in the last 400 of 1,700 steps).
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
    late_prompts: LatePrompts | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateStage:
    """Evaluation on every task and suite, perplexity and passkey included.

    use_ema: of the average of its weights, where the training kept one (optim.ema_decay). checkpoints: the last one of
    init_from, or all that it kept.
    """

    name: Literal["evaluate"]
    init_from: str
    use_ema: bool = False
    checkpoints: Literal["last", "all"] = "last"


StageConfig = Annotated[
    PrepareStage
    | PretrainStage
    | SftStage
    | DistillStage
    | GrpoStage
    | RejectStage
    | CollectStage
    | PairsStage
    | RewardModelStage
    | EvaluateStage,
    Field(discriminator="name"),
]
# Their loss is the main head's alone (model/gpt.py): MTP modules have no part in it and stay as they are.
MAIN_HEAD_STAGES = (GrpoStage, RewardModelStage)
TRAINING_STAGES = ("pretrain", "sft", "distill", "grpo", "reward_model")


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
class StudentConfig:
    """The student that a schedule distils into, imported to <root>/student: its options of the groups model and lr.

    tokenizer_vocab_size: entries of its own tokenizer. The model may have more ids (padding): nothing masks them, in
    the engine or the trainer, and training leaves them next to no probability; one that is drawn has no text.
    """

    model: str
    lr: str
    tokenizer_vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Order of stages. student: what its distillation steps name in ${schedule.student...}, if they do."""

    name: str
    steps: tuple[ScheduleStep, ...]
    student: StudentConfig | None = None


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
    def generates(self) -> bool:
        """Whether this stage draws samples, for training or for an evaluation."""
        return self.evaluate_after or isinstance(self.stage, GrpoStage | RejectStage | EvaluateStage)

    @property
    def run_dir(self) -> Path:
        return Path(self.root) / self.step
