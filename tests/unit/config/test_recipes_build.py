"""megatron-core takes the config of every recipe as a cluster would give it: FP8, recomputation, overlap and all.

Its config asks which Transformer Engine is there, and that is all that is stood in for: 2,048 GPUs should not find out.
"""

import dataclasses

import pytest

from r1train.config.load import load_config
from r1train.model.spec_deepseek import transformer_config

FUSED = (
    "fused_permute",
    "fused_permute_with_probs",
    "fused_sort_chunks_by_index",
    "fused_sort_chunks_by_index_with_probs",
    "fused_unpermute",
    "fused_topk_with_score_function",
)
V3_SET = ["layernorm", "mla_up_proj", "moe_act"]


@pytest.fixture
def with_transformer_engine(monkeypatch):
    from megatron.core import utils
    from megatron.core.transformer import transformer_config as fields
    from megatron.core.transformer.moe import moe_utils

    for module in (utils, fields):
        monkeypatch.setattr(module, "is_te_min_version", lambda *version, **options: True)
    for name in FUSED:
        monkeypatch.setattr(moe_utils, name, object())


@pytest.mark.parametrize(
    ("name", "stage", "fp8", "recomputed", "overlap"),
    [
        ("v3_pretrain_h800_2048", "pretrain", "e4m3", V3_SET, False),
        ("v3_pretrain_h100_1024", "pretrain", "e4m3", ["mla_up_proj", "mlp"], True),
        ("v3_extend_32k", "pretrain", "e4m3", V3_SET, False),
        ("v3_extend_128k", "pretrain", "e4m3", V3_SET, False),
        ("moonlight_16b_pretrain", "pretrain", None, [], False),
        ("v2_lite_pretrain", "pretrain", None, [], False),
        ("r1_zero_grpo", "grpo", None, ["core_attn", "layernorm", "mla_up_proj", "mlp", "moe"], False),
        ("moonlight_16b_grpo", "grpo", None, ["layernorm", "mla_up_proj", "mlp", "moe"], False),
    ],
)
def test_megatron_core_takes_it(with_transformer_engine, name, stage, fp8, recomputed, overlap):
    cfg = load_config([f"experiment={name}", f"stage={stage}", "step=any"], check_files=False)
    config = transformer_config(cfg.model, cfg.parallel, cfg.optim, "cuda")
    assert config.fp8 == fp8
    assert (sorted(config.recompute_modules) if config.recompute_granularity == "selective" else []) == recomputed
    assert config.overlap_moe_expert_parallel_comm == overlap
    assert config.moe_permute_fusion and config.moe_grouped_gemm and config.moe_router_dtype == "fp32"
    if fp8:
        assert config.fp8_recipe == "blockwise"
        # Attention, head and embedding stay as they are (V3 section 3.3.1).
        assert not config.fp8_dot_product_attention and not config.fp8_multi_head_attention


def test_what_megatron_core_refuses_is_refused(with_transformer_engine):
    """With the stand-ins it still judges: it has no such module, and no overlap with a pipeline but by interleaving."""
    cfg = load_config(["experiment=v3_pretrain_h800_2048", "stage=pretrain", "step=any"], check_files=False)
    for wrong in ({"recompute_modules": ("attention",)}, {"overlap_expert_all_to_all": True}):
        parallel = dataclasses.replace(cfg.parallel, **wrong)
        with pytest.raises((ValueError, AssertionError)):
            transformer_config(cfg.model, parallel, cfg.optim, "cuda")
