"""What vLLM is started with and asked for: its package, its arguments, the config.json it reads, one request's fields.

vLLM is imported when the engine is chosen: it takes long, needs CUDA and is an extra of its own.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.convert.hf_export_config import model_to_hf
from r1train.data.tokenizer import Tokenizer
from r1train.errors import EnvironmentProblem
from r1train.log.atomic import write_atomically
from r1train.model.spec import PARAMS_DTYPE
from r1train.rollout.engine import SamplingParams

# vLLM reads these when it is imported: the engine in this process, and functions sent to the model. Sums over the ranks
# of an engine are NCCL's: symmetric memory wants NVLink multicast.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}
# DeepGEMM would round the scales of FP8 blocks to powers of two: the engine would not hold what was sent.
FP8_ENVIRONMENT = {"VLLM_USE_DEEP_GEMM": "0"}
# Latent and rotary key of DeepSeek: vLLM's MLA kernels take no others, and it can compute ordinary attention instead.
MLA_WIDTHS = (512, 64)
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def import_vllm(*, fp8: bool = False) -> Any:
    """The vllm package, with what it reads from the environment set. Raises EnvironmentProblem where it is missing."""
    wanted = ENVIRONMENT | (FP8_ENVIRONMENT if fp8 else {})
    os.environ.update({key: os.environ.get(key, value) for key, value in wanted.items()})
    if "PYTORCH_ALLOC_CONF" in os.environ:
        # vLLM's sleep needs expandable segments off around its own memory, and looks for them under the older name.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", os.environ["PYTORCH_ALLOC_CONF"])
    try:
        import vllm  # noqa: PLC0415 - heavy and optional: imported when this engine is chosen
    except ImportError as error:
        fix = "Fix: pip install 'r1train[vllm]' on a machine with CUDA, or rollout.engine=native"
        raise EnvironmentProblem(f"rollout.engine=vllm, but vllm cannot be imported ({error}). {fix}") from error
    return vllm


def choose_attention(cfg: RunConfig) -> None:
    """Turn vLLM's MLA kernels off for a model that they refuse; before vLLM is imported."""
    if isinstance(cfg.model, ModelConfig) and (cfg.model.kv_lora_rank, cfg.model.qk_rope_head_dim) != MLA_WIDTHS:
        os.environ.setdefault("VLLM_MLA_DISABLE", "1")


def llm_arguments(cfg: RunConfig, tokenizer: Tokenizer, *, record_routes: bool) -> dict[str, Any]:
    """Of vLLM's LLM. Weights are pushed, so it starts with any."""
    rollout = cfg.rollout
    options: dict[str, Any] = {"enable_return_routed_experts": True} if record_routes else {}
    if not rollout.fp8:
        # Its kernels take experts as they are loaded. FlashInfer's (Blackwell's default) want gate and up swapped,
        # which vLLM does after its own loading, not after a push; no sum would see that.
        options["moe_backend"] = "triton"
    if rollout.engine_tp > 1:
        options["enable_expert_parallel"] = rollout.engine_whole_experts
        # vLLM's own shares memory by handles that expandable segments, the trainer's, do not have.
        options["disable_custom_all_reduce"] = True
    return {
        "model": str(_write_config(cfg, tokenizer)),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": dtype_name(cfg),
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": rollout.engine_tp,
        "enable_sleep_mode": True,
        "enable_prefix_caching": True,
        "gpu_memory_utilization": rollout.gpu_memory_share,
        "max_model_len": longest_sequence(cfg),
        "max_num_seqs": rollout.batch_size * rollout.engine_tp,
        "enforce_eager": not rollout.cuda_graphs,
        # The tempered distribution, as the trainer computes it.
        "logprobs_mode": "processed_logprobs",
        "seed": cfg.seed,
        **options,
    }


def dtype_name(cfg: RunConfig) -> str:
    """Of the weights that are pushed, and of what the engine computes with, but for FP8."""
    return _DTYPE_NAMES[PARAMS_DTYPE[cfg.optim.precision]]


def _write_config(cfg: RunConfig, tokenizer: Tokenizer) -> Path:
    """A folder with the config.json that vLLM asks for, one per rank."""
    folder = cfg.run_dir / "engine" / f"rank_{torch.distributed.get_rank():05d}"
    folder.mkdir(parents=True, exist_ok=True)
    fields = model_to_hf(cfg.model, dtype=dtype_name(cfg), fp8=cfg.rollout.fp8)
    fields |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    write_atomically(folder / "config.json", json.dumps(fields, indent=1) + "\n")
    return folder


def request_fields(params: SamplingParams, *, eos_id: int, seed: int | None) -> dict[str, Any]:
    """Of vLLM's SamplingParams; vLLM's own random numbers, from the request's seed where it has one."""
    return {
        "n": 1,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_response_tokens,
        "seed": seed,
        "logprobs": 0,
        "stop_token_ids": [eos_id] if eos_id >= 0 else [],
        "ignore_eos": eos_id < 0,
        "detokenize": False,
    }


def request_seed(params: SamplingParams, prompt_id: str, index: int) -> int:
    """63 bits that depend on (seed, name, prompt, index) only, as the native engine's noise does."""
    text = json.dumps([params.seed, params.name, prompt_id, index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def longest_sequence(cfg: RunConfig) -> int:
    """Tokens of the longest prompt and response that a stage asks for, of rollouts or of evaluations."""
    rollout, evaluation = cfg.rollout, cfg.eval
    longest = rollout.max_prompt_tokens + max(rollout.max_response_tokens, evaluation.max_response_tokens)
    for suite in evaluation.suites:
        response = suite.max_response_tokens or evaluation.max_response_tokens
        longest = max(longest, (suite.max_prompt_tokens or rollout.max_prompt_tokens) + response)
    if evaluation.passkey is not None:
        longest = max(longest, max(evaluation.passkey.lengths) + evaluation.passkey.max_response_tokens)
    return min(longest, cfg.model.distinct_positions)
