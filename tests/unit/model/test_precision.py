"""What FP8 recipes quantise and what they leave alone, as far as config and modules show it without a GPU."""

from dataclasses import replace

import pytest
import torch


@pytest.fixture
def fp8_config(device, monkeypatch):
    """recipe -> megatron-core's config for CUDA, where Transformer Engine would be installed."""
    from megatron.core.transformer import transformer_config as module
    from megatron.core.transformer.moe import moe_utils
    from tiny import MODEL, OPTIM, config

    monkeypatch.setattr(module, "is_te_min_version", lambda *_: True)
    for kernel in (
        "permute",
        "permute_with_probs",
        "sort_chunks_by_index",
        "sort_chunks_by_index_with_probs",
        "unpermute",
    ):
        monkeypatch.setattr(moe_utils, f"fused_{kernel}", lambda: None)

    from r1train.model.spec_deepseek import transformer_config

    def make(precision):
        optim = replace(OPTIM, precision=precision)
        return transformer_config(MODEL, config("single").parallel, optim, "cuda")

    return make


@pytest.mark.parametrize(("precision", "recipe"), [("fp8_blockwise", "blockwise"), ("fp8_tensorwise", "tensorwise")])
def test_fp8_is_e4m3_in_all_three_gemms_and_nowhere_else(fp8_config, precision, recipe):
    """V3 report section 3.3: E4M3 for Fprop, Dgrad and Wgrad of linear layers; attention, gate and weights higher."""
    config = fp8_config(precision)
    assert (config.fp8, config.fp8_recipe, config.fp8_wgrad) == ("e4m3", recipe, True)
    assert (config.fp8_dot_product_attention, config.fp8_multi_head_attention) == (False, False)
    assert (config.fp8_param, config.fp8_output_proj) == (False, False)
    assert config.moe_router_dtype == "fp32"
    assert (config.params_dtype, config.bf16) == (torch.bfloat16, True)


def test_fp8_delayed_scaling_is_never_chosen(fp8_config):
    assert {fp8_config(name).fp8_recipe for name in ("fp8_blockwise", "fp8_tensorwise")} == {"blockwise", "tensorwise"}
    assert fp8_config("bf16").fp8 is None


def test_embedding_head_router_and_norms_are_not_transformer_engines(device):
    """Only Transformer Engine's linear layers quantise. These classes are built by megatron-core on every device."""
    from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
    from tiny import config

    from r1train.model.build import build_model
    from r1train.model.router import Router

    model = build_model(config("single"), device)
    assert type(model.output_layer) is ColumnParallelLinear
    assert type(model.embedding.word_embeddings) is VocabParallelEmbedding
    gates = [layer.mlp.router for layer in model.decoder.layers[1:]]
    assert all(type(gate) is Router and type(gate.weight) is torch.nn.Parameter for gate in gates)


def test_expert_biases_stay_fp32_in_bf16_runs(device):
    from tiny import OPTIM, config

    from r1train.model.build import build_model

    model = build_model(config("single", optim=replace(OPTIM, precision="bf16")), device)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.decoder.layers[1].mlp.router._maintain_float32_expert_bias()  # megatron-core calls it in every forward
    assert model.decoder.layers[1].mlp.router.expert_bias.dtype == torch.float32


def test_buffers_stay_fp32_in_bf16_runs(device):
    """Counts of tokens above 256, correction biases and rotary tables are not numbers that BF16 has."""
    from tiny import OPTIM, YARN_MODEL, config

    from r1train.model.build import build_model

    model = build_model(config("single", model=YARN_MODEL, optim=replace(OPTIM, precision="bf16")), device)
    kinds = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    assert {"local_tokens_per_expert", "expert_bias", "cos_cached", "sin_cached"} <= kinds
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    gate = model.decoder.layers[1].mlp.router.train()
    hidden = torch.randn(1200, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    for part in hidden.split(1):  # one token at a time, as micro-batches add up
        gate(part.bfloat16())
    gate.keep_load()
    assert gate.step_load.sum() == 2 * 1200
    assert gate.step_load.max() > 256


def test_moments_are_bf16_and_masters_fp32(monkeypatch):
    """V3 report section 3.3.1, as handed to Transformer Engine's FusedAdam on CUDA."""
    from types import SimpleNamespace

    from tiny import OPTIM

    from r1train.train import optim

    seen = {}

    def built(config, chunks, **_):
        seen.update(vars(config))
        return SimpleNamespace(param_groups=[])

    monkeypatch.setattr(optim, "OptimizerConfig", lambda **options: SimpleNamespace(**options))
    monkeypatch.setattr(optim, "get_megatron_optimizer", built)
    cuda = SimpleNamespace(type="cuda")
    optim.build_optimizer(replace(OPTIM, precision="fp8_blockwise", moments_dtype="bf16"), [], cuda)
    assert seen["use_precision_aware_optimizer"] is True
    assert (seen["exp_avg_dtype"], seen["exp_avg_sq_dtype"]) == (torch.bfloat16, torch.bfloat16)
    assert seen.get("main_params_dtype", torch.float32) == torch.float32
    optim.build_optimizer(replace(OPTIM, precision="bf16", cpu_offload_fraction=0.5), [], cuda)
    assert (seen["optimizer_cpu_offload"], seen["optimizer_offload_fraction"]) == (True, 0.5)
    assert seen["use_precision_aware_optimizer"] is False
