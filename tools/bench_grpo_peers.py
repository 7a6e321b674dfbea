"""What tools/bench_grpo.py compares with: TRL's GRPOTrainer, and vLLM without a trainer, on an exported folder.

Neither package is one of r1train's dependencies: they are imported where they are measured.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.errors import EnvironmentProblem, R1TrainError

MLA_WIDTHS = (512, 64)  # as r1train/rollout/vllm.py, which would import megatron-core here


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every system does: the same prompts, so many samples of each with exactly so many tokens, one update.

    steps: with the warm-up. micro_batch: sequences that TRL computes at a time; dtype: of TRL's weights.
    """

    hf: Path
    prompts: list[Prompt]
    samples: int
    tokens: int
    steps: int
    learning_rate: float
    temperature: float
    micro_batch: int
    dtype: str
    gpu_memory_share: float

    @property
    def sequences(self) -> int:
        """Of one step."""
        return len(self.prompts) * self.samples

    @property
    def max_prompt_tokens(self) -> int:
        return max(len(prompt.token_ids) for prompt in self.prompts)


@dataclass
class Times:
    """Seconds of every step, warm-up included, by part: step, rollout, generate, push, train. A part may be missing."""

    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.parts.setdefault(name, []).append(value)


def clock() -> float:
    """Seconds, after everything that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def accumulation(work: Work) -> int:
    """Micro-batches of one step. Raises R1TrainError where they would not be equal."""
    if work.sequences % work.micro_batch:
        what = f"--micro-batch {work.micro_batch} does not divide the {work.sequences} sequences of a step"
        raise R1TrainError(f"{what}. Fix: such as --micro-batch {work.samples}")
    return work.sequences // work.micro_batch


def prompt_texts(prompts: list[Prompt], ours: Tokenizer, theirs: Callable[[str], list[int]]) -> list[str]:
    """The prompts as text that the other tokenizer gives the same ids. Raises R1TrainError where it does not."""
    texts = [ours.decode(prompt.token_ids) for prompt in prompts]
    wrong = [prompt.id for prompt, text in zip(prompts, texts, strict=True) if tuple(theirs(text)) != prompt.token_ids]
    if wrong:
        what = f"{len(wrong)} prompts ({wrong[0]}, ...) have other token ids in the folder's own tokenizer"
        raise R1TrainError(f"{what}, so the systems would not do the same work. Fix: the tokenizer of the same model")
    return texts


def narrow_latents(hf: Path) -> bool:
    """Whether vLLM has to compute this model's attention without its MLA kernels."""
    fields = json.loads((hf / "config.json").read_text(encoding="utf-8"))
    widths = (fields.get("kv_lora_rank"), fields.get("qk_rope_head_dim"))
    return widths[0] is not None and widths != MLA_WIDTHS


def prepare_vllm(hf: Path) -> None:
    """Variables that vLLM reads when it is imported: the engine in this process, and attention that can be computed."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if narrow_latents(hf):
        os.environ.setdefault("VLLM_MLA_DISABLE", "1")


def raw_vllm(work: Work, *, logprobs: bool) -> Times:
    """vLLM's own generate, weights from the folder, no trainer beside it. logprobs: also those of the drawn tokens."""
    prepare_vllm(work.hf)
    try:
        from vllm import LLM, SamplingParams  # noqa: PLC0415 - heavy, and not needed by the other systems
    except ImportError as error:
        raise EnvironmentProblem(
            f"vllm cannot be imported ({error}). Fix: pip install vllm, or leave it out"
        ) from error
    llm = LLM(
        model=str(work.hf),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        gpu_memory_utilization=work.gpu_memory_share,
        max_model_len=work.max_prompt_tokens + work.tokens,
        max_num_seqs=work.sequences,
        logprobs_mode="processed_logprobs",
    )
    params = SamplingParams(
        temperature=work.temperature,
        max_tokens=work.tokens,
        ignore_eos=True,
        logprobs=0 if logprobs else None,
        detokenize=False,
    )
    requests = [{"prompt_token_ids": list(one.token_ids)} for one in work.prompts for _ in range(work.samples)]
    times = Times()
    for _ in range(work.steps):
        llm.reset_prefix_cache()
        started = clock()
        outputs = llm.generate(requests, params, use_tqdm=False)
        times.add(generate=clock() - started)
        check_lengths([len(output.outputs[0].token_ids) for output in outputs], work)
    return times


def trl(work: Work, tokenizer: Tokenizer, *, scratch: Path, use_vllm: bool) -> Times:
    """Whole steps of TRL's GRPOTrainer. use_vllm: vLLM in the same process (colocate), else transformers' generate."""
    if use_vllm:
        prepare_vllm(work.hf)
    try:
        # TRL and what it needs (datasets, accelerate) are not dependencies of r1train.
        from datasets import Dataset  # noqa: PLC0415
        from transformers import AutoTokenizer  # noqa: PLC0415
        from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415
    except ImportError as error:
        raise EnvironmentProblem(f"TRL cannot be imported ({error}). Fix: pip install trl==1.16.0") from error
    theirs = AutoTokenizer.from_pretrained(work.hf)
    texts = prompt_texts(work.prompts, tokenizer, lambda text: theirs(text)["input_ids"])
    times = Times()

    class TimedTrainer(GRPOTrainer):
        """The trainer, with a clock around its generation and its steps."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            started = clock()
            made = super()._generate_single_turn(*args, **kwargs)
            times.add(rollout=clock() - started)
            check_lengths([len(ids) for ids in made[0]], work)
            return made

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self._step % work_steps == 0:
                self.step_started = clock()
            return super().training_step(*args, **kwargs)

    work_steps = accumulation(work)
    trainer = TimedTrainer(
        model=str(work.hf),
        reward_funcs=alternate,
        args=GRPOConfig(**trl_options(work, scratch=scratch, use_vllm=use_vllm)),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=theirs,
    )
    if use_vllm:
        push = trainer.vllm_generation.sync_weights

        def timed_push() -> None:
            started = clock()
            push()
            times.add(push=clock() - started)

        trainer.vllm_generation.sync_weights = timed_push
    trainer.add_callback(step_clock(trainer, times))
    trainer.train()
    return with_rest(times)


def step_clock(trainer: Any, times: Times) -> Any:
    """A callback that books a step when its update is done, and starts the next one."""
    from transformers import TrainerCallback  # noqa: PLC0415 - as in trl()

    class StepClock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.add(step=clock() - trainer.step_started)

    return StepClock()


def with_rest(times: Times) -> Times:
    """The same with train, what a step does beside its rollout, and generate, what a rollout does beside its push."""
    rollouts = times.parts["rollout"]
    pushes = times.parts.get("push", [0.0] * len(rollouts))
    train = [whole - rollout for whole, rollout in zip(times.parts["step"], rollouts, strict=True)]
    generate = [rollout - push for rollout, push in zip(rollouts, pushes, strict=True)]
    return Times({**times.parts, "train": train, "generate": generate})


def alternate(completions: list[str], **_: object) -> list[float]:
    """Rewards that differ within every group: 0, 1, 0, 1, ..."""
    return [float(place % 2) for place in range(len(completions))]


def check_lengths(lengths: list[int], work: Work) -> None:
    """Raise R1TrainError unless every sequence has exactly the tokens that were asked for."""
    if lengths != [work.tokens] * work.sequences:
        found = f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens"
        raise R1TrainError(f"{found} instead of {work.sequences} of {work.tokens}: the systems do not do the same work")


def trl_options(work: Work, *, scratch: Path, use_vllm: bool) -> dict[str, Any]:
    """Of GRPOConfig: our algorithm (clip 0.2, no KL, mean over sequences of the mean over tokens) and our optimizer.

    Everything else is TRL's own choice, but for checkpointing of activations, which ours does not use either.
    """
    on_gpu = torch.cuda.is_available()
    fixed_length = {"ignore_eos": True} if use_vllm else {"min_new_tokens": work.tokens}
    options: dict[str, Any] = {
        "output_dir": str(scratch),
        "per_device_train_batch_size": work.micro_batch,
        "gradient_accumulation_steps": accumulation(work),
        "num_generations": work.samples,
        "max_completion_length": work.tokens,
        "temperature": work.temperature,
        "generation_kwargs": fixed_length,
        "max_steps": work.steps,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "beta": 0.0,
        "epsilon": 0.2,
        "loss_type": "grpo",
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": work.dtype},
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_vllm": use_vllm,
    }
    if use_vllm:
        options |= {
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": work.gpu_memory_share,
            "vllm_max_model_length": work.max_prompt_tokens + work.tokens,
        }
    return options
