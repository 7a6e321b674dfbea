"""Small models, and Hugging Face folders with random weights made from the name table."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1train.config.schema_model import DenseModelConfig, Llama3RopeConfig, ModelConfig, YarnConfig
from r1train.convert.export_plan import hf_tensors
from r1train.convert.hf_export_config import model_to_hf
from r1train.convert.names import entries

DEEPSEEK = ModelConfig(
    name="deepseek_v3",
    vocab_size=80,
    hidden_size=48,
    num_layers=3,
    num_dense_layers=1,
    ffn_hidden_size=136,
    num_attention_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    num_experts=4,
    num_experts_per_token=2,
    num_shared_experts=1,
    moe_ffn_hidden_size=20,
    num_expert_groups=2,
    num_groups_per_token=1,
    router_score="sigmoid",
    router_bias=True,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    mtp_depth=1,
    rope_base=10000.0,
    yarn=YarnConfig(factor=4.0, original_max_positions=64),
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    init_std=0.006,
    sequence_loss_coef=1e-4,
)
MOONLIGHT = replace(
    DEEPSEEK, q_lora_rank=None, num_expert_groups=1, num_shared_experts=2, mtp_depth=0, yarn=None, rope_base=50000.0
)
V2_LITE = replace(
    MOONLIGHT,
    name="deepseek_v2",
    router_score="softmax",
    router_bias=False,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
)
LLAMA = DenseModelConfig(
    name="llama",
    vocab_size=80,
    hidden_size=48,
    num_layers=2,
    ffn_hidden_size=136,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=12,
    qkv_bias=False,
    tie_embeddings=False,
    rope_base=500000.0,
    rope_scaling=Llama3RopeConfig(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    init_std=0.02,
)
QWEN = replace(LLAMA, name="qwen2", head_dim=8, qkv_bias=True, tie_embeddings=True, rope_scaling=None)
MODELS = {"deepseek": DEEPSEEK, "moonlight": MOONLIGHT, "v2_lite": V2_LITE, "llama": LLAMA, "qwen": QWEN}


def random_weights(model, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor that Hugging Face stores; copies are equal, the expert biases are fp32."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for tensor in hf_tensors(entries(model), dtype):
        found[tensor.name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    for entry in entries(model):
        for part in entry.parts:
            found |= {copy: found[part.name].clone() for copy in part.copies}
    return found


@pytest.fixture
def models() -> dict:
    return MODELS


@pytest.fixture
def make_hf(tmp_path: Path) -> Callable[..., Path]:
    """make_hf(model, dtype=bf16, files=2, **changes of tensors) -> folder with config.json and safetensors."""

    def make(model, *, dtype=torch.bfloat16, name: str = "source", edit: Callable[[dict], None] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        names = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
        config = model_to_hf(model, dtype=names[dtype]) | {"bos_token_id": 3, "eos_token_id": 5}
        (folder / "config.json").write_text(json.dumps(config))
        weights = random_weights(model, dtype)
        if edit is not None:
            edit(weights)
        ordered = sorted(weights)
        half = len(ordered) // 2
        for number, part in enumerate((ordered[:half], ordered[half:]), 1):
            save_file({key: weights[key] for key in part}, folder / f"model-{number:05d}-of-00002.safetensors")
        return folder

    return make


@pytest.fixture
def read_hf() -> Callable[[Path], dict[str, torch.Tensor]]:
    """All tensors of a folder, through the safetensors library."""

    def read(folder: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            found |= load_file(path)
        return found

    return read
