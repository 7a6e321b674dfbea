"""Which kernels a run selected: one log line at the start, one warning per choice that is a slow one."""

import importlib
import logging
import os

from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.config.schema import RunConfig
from r1train.dist.init import Device, is_rank0
from r1train.dist.probe import apex_fusion, flex_problem
from r1train.model.gpt import R1Model

_log = logging.getLogger(__name__)
# Transformer Engine picks among these at run time unless told not to.
_TE_ATTENTION = {"NVTE_FUSED_ATTN": "cuDNN", "NVTE_FLASH_ATTN": "FlashAttention"}
_TE_CHOICE = "transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention"


def report_backends(cfg: RunConfig, device: Device, modules: list[R1Model]) -> None:
    """Log, on the first rank, what describe() and slow_choices() say."""
    if not is_rank0():
        return
    _log.info("backends: %s", ", ".join(f"{part}: {name}" for part, name in describe(device, modules).items()))
    for line in slow_choices(cfg, device, modules[0].config):
        _log.warning("%s", line)


def report_attention(device: Device) -> None:
    """Log, on the first rank and after a forward, which attention kernel it took; a warning where it is a slow one."""
    if device.type == "cuda" and is_rank0():
        kernel = attention_in_use()
        level = logging.WARNING if kernel == "unfused" else logging.INFO
        _log.log(level, "attention kernel of the first step: %s", kernel)


def attention_in_use() -> str:
    """What Transformer Engine chose in its last forward: cuDNN, FlashAttention or unfused.

    It says so in its debugging output only, so this reads the table in which it remembers its choice.
    """
    # By name, because Transformer Engine is not installed where there is no GPU.
    chosen = vars(importlib.import_module(_TE_CHOICE)).get("_attention_backends", {})
    names = {"flash": "FlashAttention", "fused": "cuDNN", "unfused": "unfused"}
    return next((name for key, name in names.items() if chosen.get(f"use_{key}_attention")), "not known")


def describe(device: Device, modules: list[R1Model]) -> dict[str, str]:
    """part -> what computes it: attention, GEMM precision, dispatcher, experts, weight gradients."""
    config = modules[0].config
    found = {"attention": _attention(device, modules), "GEMM": _precision(config)}
    if config.num_moe_experts is not None:
        found["dispatcher"] = config.moe_token_dispatcher_type
        found["experts"] = "grouped GEMM" if config.moe_grouped_gemm else "one GEMM per expert"
    found["weight gradients"] = _weight_gradients(config)
    return found


def slow_choices(cfg: RunConfig, device: Device, config: TransformerConfig) -> list[str]:
    """One line for every choice that costs speed, with what would be faster. Nothing on CPU: everything is slow there.

    megatron-core pads nothing for FP8 here: Transformer Engine's grouped layer pads its own inputs.
    """
    if device.type == "cpu":
        return []
    lines = []
    if cfg.parallel.dispatcher == "flex" and config.moe_token_dispatcher_type != "flex":
        lines.append(f"dispatcher flex falls back to alltoall: DeepEP cannot be used ({flex_problem()})")
    if cfg.parallel.dispatcher == "alltoall" and cfg.parallel.ep > cfg.cluster.processes_per_node:
        lines.append("dispatcher alltoall sends a token once per expert across nodes; flex (DeepEP) once per node")
    if os.environ.get("NVTE_FUSED_ATTN") == "0" and os.environ.get("NVTE_FLASH_ATTN") == "0":
        lines.append("NVTE_FUSED_ATTN=0 and NVTE_FLASH_ATTN=0 leave Transformer Engine's unfused attention only")
    if cfg.optim.precision == "fp32":
        lines.append("precision fp32 leaves the tensor cores idle; optim=adamw_bf16 is several times faster")
    if not apex_fusion():
        lines.append("apex is not installed: the LM head's weight gradient is added in a separate kernel")
    return lines


def _attention(device: Device, modules: list[R1Model]) -> str:
    cores = [layer.self_attention.core_attention for module in modules for layer in module.decoder.layers]
    name = type(cores[0]).__name__ if cores else "none on this stage"
    if device.type == "cpu" or not cores:
        return name
    allowed = [kernel for variable, kernel in _TE_ATTENTION.items() if os.environ.get(variable, "1") != "0"]
    return f"{name} ({' or '.join(allowed) or 'unfused'})"


def _precision(config: TransformerConfig) -> str:
    if config.fp8 is not None:
        return f"fp8 {config.fp8} {config.fp8_recipe}"
    return "bf16" if config.bf16 else "fp32"


def _weight_gradients(config: TransformerConfig) -> str:
    if not config.gradient_accumulation_fusion:
        return "added separately"
    return "fused" if apex_fusion() else "fused, LM head's added separately"
