"""Worked numbers of the project's source documents, on our own modules."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import LAYOUTS, MODEL, OPTIM, config

from r1train.config.load import load_config
from r1train.config.schema_model import DenseModelConfig
from r1train.plan.memory import cache_bytes_per_token

SOFTMAX = replace(
    MODEL,
    num_expert_groups=1,
    num_groups_per_token=1,
    num_experts_per_token=2,
    router_score="softmax",
    router_bias=False,
    routed_scaling_factor=1.0,
    mtp_depth=0,
)


def test_rms_norm(device):
    """[2, -2, 1, 1] / sqrt(2.5) = [1.2649, -1.2649, 0.6325, 0.6325].

    Printed: [1.27, -1.27, 0.63, 0.63]. 1.2649 rounds to 1.26; 1.27 comes from rounding twice (1.265, then 1.27).
    """
    from r1train.model.norm import RMSNorm

    norm = RMSNorm(SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False), 4, eps=1e-6)
    out = norm(torch.tensor([2.0, -2.0, 1.0, 1.0]))
    assert [round(value, 4) for value in out.tolist()] == [1.2649, -1.2649, 0.6325, 0.6325]
    assert out.tolist() == pytest.approx([1.27, -1.27, 0.63, 0.63], abs=0.0052)


def gates(model, logits: list[float]) -> list[float]:
    """What our router gives one token with these logits."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from r1train.model.router import Router
    from r1train.model.spec_deepseek import transformer_config

    made = Router(
        transformer_config(model, LAYOUTS["single"], OPTIM, "cpu"),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    ).eval()
    hidden = torch.zeros(1, 1, model.hidden_size)
    hidden[..., 0] = 1.0
    with torch.no_grad():
        made.weight.zero_()
        made.weight[:, 0] = torch.tensor(logits)
        return made(hidden)[0][0].tolist()


def test_router_with_softmax_and_two_of_three_experts(device):
    """softmax [3.4, 1.1, 2.2] = [0.7135, 0.0715, 0.2149], top-2 of it: [0.71, 0, 0.21].

    Printed: [0.70, 0, 0.24]. 0.70 is 0.71 cut or rounded down; 0.24 is wrong, also if the two kept gates were
    normalised, which would give [0.77, 0, 0.23].
    """
    three = replace(SOFTMAX, num_experts=3, norm_topk_prob=False)
    logits = [3.4, 1.1, 2.2]
    assert torch.tensor(logits).softmax(0).tolist() == pytest.approx([0.7135, 0.0715, 0.2149], abs=5e-5)
    assert gates(three, logits) == pytest.approx([0.7135, 0.0, 0.2149], abs=5e-5)
    assert gates(replace(three, norm_topk_prob=True), logits) == pytest.approx([0.7685, 0.0, 0.2315], abs=5e-5)


@torch.no_grad()
def test_gates_weigh_the_experts_outputs(device):
    """Two experts with gates 0.7 and 0.3: the layer gives 0.7 E1(x) + 0.3 E2(x); there are no shared experts."""
    from r1train.model.build import build_model

    model = replace(SOFTMAX, num_experts=2, norm_topk_prob=False, num_shared_experts=0)
    layer = build_model(config("single", model=model), device).eval().decoder.layers[1].mlp
    layer.router.weight.zero_()
    layer.router.weight[:, 0] = torch.tensor([0.7, 0.3]).log()
    hidden = torch.randn(5, 1, 64, generator=torch.Generator().manual_seed(1))
    hidden[..., 0] = 1.0

    def expert(index: int) -> torch.Tensor:
        gate, up = (hidden @ layer.experts.local_experts[index].linear_fc1.weight.T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up) @ layer.experts.local_experts[index].linear_fc2.weight.T

    assert expert(0).abs().mean() > 0.01 and not expert(0).allclose(expert(1), atol=1e-2)
    torch.testing.assert_close(layer(hidden)[0], 0.7 * expert(0) + 0.3 * expert(1), atol=1e-6, rtol=1e-5)


def test_cache_of_a_token():
    """12 layers, 64 heads of 128, latent 512, fp32.

    MHA: 2 x 64 x 128 x 12 x 4 = 786,432 bytes, printed 786 KB. MLA, printed 49 KB: 49,152 = 2 x 512 x 12 x 4 counts the
    latent twice, as key and as value, and leaves out the RoPE key. It is kept once: 512 x 12 x 4 = 24,576 bytes, and
    64 x 12 x 4 = 3,072 more for the RoPE key of width 64.
    """
    mha = DenseModelConfig(
        name="mha",
        vocab_size=64,
        hidden_size=8192,
        num_layers=12,
        ffn_hidden_size=64,
        num_attention_heads=64,
        num_key_value_heads=64,
        head_dim=128,
        qkv_bias=False,
        tie_embeddings=False,
        rope_base=10000.0,
        rope_scaling=None,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        init_std=0.02,
    )
    mla = replace(MODEL, num_layers=12, num_attention_heads=64, kv_lora_rank=512, qk_rope_head_dim=64)
    assert cache_bytes_per_token(mha, "fp32") == 786_432
    assert cache_bytes_per_token(mla, "fp32") == 24_576 + 3_072
    assert 2 * (cache_bytes_per_token(mla, "fp32") - 3_072) == 49_152
    v3 = load_config(["experiment=v3_pretrain_h800_2048"], check_files=False).model
    assert cache_bytes_per_token(v3, "bf16") == 70_272  # (512 + 64) x 61 x 2
