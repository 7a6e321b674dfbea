"""Optimizer, schedules and data: what one optimizer step consumes and how fast it moves."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Segment:
    """From the previous segment's end up to `until` the value goes to `to` in this shape (constant: it jumps)."""

    until: float
    shape: Literal["linear", "cosine", "constant"]
    to: float


@dataclass(frozen=True, kw_only=True)
class Piecewise:
    """A value over training progress; after the last segment it stays at the last `to`.

    unit tokens: consumed tokens; steps: finished optimizer steps; fraction: finished steps / steps of the stage.
    """

    start: float
    segments: tuple[Segment, ...] = ()
    unit: Literal["tokens", "steps", "fraction"] = "tokens"


@dataclass(frozen=True, kw_only=True)
class LrConfig:
    """Everything that changes while training, each a pure function of progress (V3 report section 4.2).

    batch_size: sequences per step of the pretrain stage, growing to stage.batch_size; null: that many from the start.
    batch_multiple: what the growing batch is rounded to, so that it does not depend on layout and micro-batches.
    """

    name: str
    learning_rate: Piecewise
    mtp_weight: Piecewise
    bias_rate: Piecewise
    batch_size: Piecewise | None = None
    batch_multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and precision. moments/master dtypes apply to bf16 and fp8 runs; fp32 runs keep everything in fp32.

    cpu_offload_fraction: share of the optimizer's state that lives, and is updated, in host memory (0 none, 1 all).
    ema_decay: per step, of an average of the weights in host memory that checkpoints keep; null: no average.
    """

    name: str
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_grad: float
    precision: Literal["fp32", "bf16", "fp8_blockwise", "fp8_tensorwise"]
    moments_dtype: Literal["fp32", "bf16"] = "fp32"
    cpu_offload_fraction: float = 0.0
    ema_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class PasskeyDocuments:
    """What the corpus builtin:passkey holds (data/passkey_corpus.py).

    max_tokens: of the longest document, prompt, answer and end token together; digits: of a key, 2 or more.
    """

    max_tokens: int
    documents: int
    digits: int = 5


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of the pre-training blend. source: a text/jsonl file, or `builtin:NAME` (data/documents.py).

    passkey: with builtin:passkey, and only there.
    """

    name: str
    source: str
    weight: float
    passkey: PasskeyDocuments | None = None


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One kind of problem. name: a reasoning-gym data set, or `gsm8k`; params go to its generator.

    train/heldout/cold_start: how many problems of each; the sets share no question.
    styles: share of each way of thinking in the cold-start examples (data/cold_start.py lists them).
    train_file, heldout_file: jsonl with `question` or `problem`, and `answer`, from which the problems are taken
    instead; null: generated, for gsm8k the rows that ship. template: the prompt, {question} filled in.
    """

    name: str
    train: int
    heldout: int
    cold_start: int
    params: dict[str, int | float | str | bool | list[int] | list[str]]
    styles: dict[str, float]
    train_file: str | None = None
    heldout_file: str | None = None
    template: str = "{question}"


Packing = Literal["concatenate", "best_fit"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the prepare stage builds and later stages read; everything lies below `dir`.

    fim_rate: share of the documents cut for fill-in-the-middle when they are tokenised (V3: 0.1).
    boundary_split_rate: share of the places where a token of punctuation and line breaks is split into its parts when
    documents are tokenised (V3 does so and does not say how often; data/boundaries.py).
    packing: how pre-training cuts documents into windows: concatenate (one after the other, cut anywhere) or best_fit
    (whole where they fit, V3's; data/fit.py).
    mask_across_documents: attention and loss of pre-training stay within documents (V3: they do not).
    loader: what reads ahead and copies to the GPU; both give the same batches.
    heldout_fraction: share of every corpus's documents that is kept from training, for perplexity (data/split.py).
    decontaminate: jsonl files of evaluation sets, or builtin:gsm8k for its held-out rows; documents of the corpora that
    share decontaminate_words words in a row with any string there are left out and listed (data/decontaminate.py).
    tokenizer: folder of a tokenizer to use as it is, ours or a Hugging Face model's with its chat template; null: one
    is trained on the corpora, of words that pre_tokenizer finds (data/pre_tokenizer.py).
    """

    name: str
    dir: str
    tokenizer_vocab_size: int
    corpora: tuple[CorpusConfig, ...]
    tasks: tuple[TaskConfig, ...]
    worked_examples: int
    seed: int
    tokenizer: str | None = None
    pre_tokenizer: Literal["digits", "deepseek_v3"] = "digits"
    heldout_fraction: float = 0.0
    fim_rate: float = 0.0
    boundary_split_rate: float = 0.0
    decontaminate: tuple[str, ...] = ()
    decontaminate_words: int = 13
    packing: Packing = "concatenate"
    mask_across_documents: bool = False
    loader: Literal["torch", "dali"] = "torch"
