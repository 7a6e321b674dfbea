"""Every number of the pre-training recipes against the reports that publish it.

Sources: DeepSeek-V3 report (arXiv 2412.19437) sections 3 and 4, DeepSeek-V2 report (2405.04434) appendix B, Moonlight
(2502.16982) section 3.3. The traps are departures found in published configurations that claim to reproduce V3.
"""

import dataclasses

import pytest
import torch

from r1train.config.layout import micro_batch_rounds, parse_layout, virtual_stages
from r1train.config.load import load_config
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.steps import plan_steps
from r1train.model.spec_deepseek import transformer_config
from r1train.train.schedules import Progress, batch_size_at, value_at

T = 10**12
V3 = ("v3_pretrain_h800_2048", "v3_pretrain_h100_1024")


def load(name):
    return load_config([f"experiment={name}"], check_files=False)


def at(schedule, tokens, *, steps=0, total=1):
    return value_at(schedule, Progress(int(tokens), steps, total))


@pytest.mark.parametrize("name", V3)
def test_optimizer(name):
    """Section 4.2: AdamW 0.9, 0.95, decay 0.1, clip 1.0. Section 3.3: E4M3 tiles, bf16 moments. Epsilon is ours."""
    optim = load(name).optim
    assert (optim.beta1, optim.beta2, optim.weight_decay, optim.clip_grad) == (0.9, 0.95, 0.1, 1.0)
    assert (optim.precision, optim.moments_dtype) == ("fp8_blockwise", "bf16")
    assert optim.ema_decay is not None


@pytest.mark.parametrize("name", V3)
@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (0, 0.0),
        (13_865_320_448, 1.1e-4),  # half of the 2,000 steps' tokens: tests/unit/train/test_schedules.py
        (27_730_640_896, 2.2e-4),
        (5 * T, 2.2e-4),
        (10 * T, 2.2e-4),
        (11.075 * T, 1.910036e-4),
        (12.15 * T, 1.21e-4),
        (13.225 * T, 5.09964e-5),
        (14.3 * T, 2.2e-5),
        (14.633 * T, 2.2e-5),
        (14.634 * T, 7.3e-6),
        (14.8 * T, 7.3e-6),
    ],
)
def test_learning_rate(name, tokens, rate):
    assert at(load(name).lr.learning_rate, tokens) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", V3)
def test_mtp_weight_bias_rate_and_batch(name):
    """Section 4.2: 0.3 for 10T tokens, then 0.1; 0.001 until 14.3T, then 0; 3072 to 15360 sequences in 469B tokens."""
    cfg = load(name)
    lr, stage = cfg.lr, cfg.stage
    assert [at(lr.mtp_weight, x * T) for x in (0, 10, 10.1, 14.8)] == [0.3, 0.3, 0.1, 0.1]
    assert [at(lr.bias_rate, x * T) for x in (0, 14.3, 14.4, 14.8)] == [1e-3, 1e-3, 0.0, 0.0]
    assert [at(lr.batch_size, x) for x in (0, 469e9, 10 * T)] == [3072, 15360, 15360]
    assert (stage.batch_size, stage.seq_length, stage.batch_size * stage.seq_length) == (15360, 4096, 62_914_560)


@pytest.mark.parametrize("name", V3)
def test_steps_make_14_8T_tokens(name):
    """A straight ramp takes its 469B tokens in 15,019 steps; 227,785 more make 14.8T. On every layout the same."""
    cfg, tokens, steps = load(name), 0, 0
    share = cfg.parallel.dp * cfg.stage.micro_batch_size * micro_batch_rounds(cfg.parallel)
    assert share == {"v3_pretrain_h800_2048": 128, "v3_pretrain_h100_1024": 64 * 8}[name]
    while tokens < 469e9:
        size = batch_size_at(cfg.lr, cfg.stage.batch_size, Progress(tokens, steps, cfg.stage.steps))
        assert size % share == 0
        tokens, steps = tokens + size * 4096, steps + 1
    assert (steps, cfg.stage.steps) == (15_019, 15_019 + 227_785)
    assert 0 <= tokens + 227_785 * 62_914_560 - 14.8e12 < 62_914_560


@pytest.mark.parametrize("name", V3)
def test_model(name):
    """Section 4.2 and the released config.json."""
    model = load(name).model
    assert (model.num_layers, model.num_dense_layers, model.hidden_size, model.num_attention_heads) == (
        61,
        3,
        7168,
        128,
    )
    assert (model.q_lora_rank, model.kv_lora_rank, model.qk_nope_head_dim, model.qk_rope_head_dim) == (
        1536,
        512,
        128,
        64,
    )
    assert (model.num_experts, model.num_experts_per_token, model.num_shared_experts) == (256, 8, 1)
    assert (model.num_expert_groups, model.num_groups_per_token, model.moe_ffn_hidden_size) == (8, 4, 2048)
    assert (model.router_score, model.routed_scaling_factor, model.mtp_depth) == ("sigmoid", 2.5, 1)
    assert (model.vocab_size, model.v_head_dim, model.ffn_hidden_size) == (129280, 128, 18432)
    assert (model.rope_base, model.rms_norm_eps, model.max_position_embeddings) == (10000.0, 1e-6, 163840)
    assert (model.norm_topk_prob, model.router_bias, model.attention_windows) == (True, True, None)
    yarn = model.yarn
    assert (yarn.original_max_positions, yarn.beta_fast, yarn.beta_slow) == (4096, 32.0, 1.0)
    assert (yarn.mscale, yarn.mscale_all_dim) == (1.0, 1.0)


@pytest.mark.parametrize("name", (*V3, "v3_extend_32k", "v3_extend_128k"))
def test_data(name):
    """Section 4.1: FIM in PSM order at rate 0.1, whole documents, no mask between them, 128K entries (129280 rows)."""
    data = load(name).data
    assert (data.fim_rate, data.mask_across_documents, data.tokenizer_vocab_size) == (0.1, False, 129280)
    # Documents are packed whole, tokens of punctuation and line breaks exist, and some of them are split.
    assert (data.packing, data.pre_tokenizer) == ("best_fit", "deepseek_v3")
    assert data.boundary_split_rate > 0


def as_megatron_core_sees(cfg, parallel):
    """megatron-core's config of the recipe's model in this layout; FP8 and recomputation would ask for a GPU."""
    optim = dataclasses.replace(cfg.optim, precision="bf16")
    return transformer_config(cfg.model, dataclasses.replace(parallel, recompute_modules=()), optim, "cpu")


def test_what_megatron_core_is_told():
    """config.json: SwiGLU, no biases, dense layers first. Section 4.2: no token dropped; 2.1.2: sequence-wise loss."""
    config = as_megatron_core_sees(load(V3[0]), ParallelConfig(world_size=1))
    assert (config.activation_func, config.gated_linear_unit) == (torch.nn.functional.silu, True)
    assert (config.normalization, config.add_bias_linear, config.add_qkv_bias) == ("RMSNorm", False, False)
    assert config.moe_layer_freq == [0] * 3 + [1] * 58
    assert (config.attention_dropout, config.hidden_dropout) == (0.0, 0.0)
    assert (config.moe_expert_capacity_factor, config.moe_z_loss_coeff, config.moe_router_dtype) == (None, None, "fp32")
    assert (config.moe_router_load_balancing_type, config.moe_aux_loss_coeff) == ("seq_aux_loss", 1e-4)
    assert (config.moe_router_topk, config.moe_router_num_groups, config.moe_router_group_topk) == (8, 8, 4)
    assert (config.moe_router_topk_scaling_factor, config.moe_shared_expert_intermediate_size) == (2.5, 2048)
    assert (config.rotary_base, config.rotary_scaling_factor, config.layernorm_epsilon) == (10000.0, 1.0, 1e-6)


def test_layout_of_the_paper():
    """Section 3.2: 2048 GPUs, PP16, EP64 over 8 nodes, no tensor parallelism, ZeRO-1. 24 to 120 sequences per rank."""
    cfg = load("v3_pretrain_h800_2048")
    parallel = cfg.parallel
    assert (parallel.world_size, parallel.pp, parallel.ep) == (2048, 16, 64)
    assert (parallel.tp, parallel.cp, parallel.etp) == (1, 1, 1)
    assert (parallel.dp, parallel.edp, cfg.cluster.nodes, cfg.cluster.processes_per_node) == (128, 2, 256, 8)
    assert (3072 // parallel.dp, 15360 // parallel.dp) == (24, 120)
    assert parse_layout(parallel.pp_layout) == ("Etttt", *["tttt"] * 14, "tmL")
    assert set(parallel.recompute_modules) == {"layernorm", "mla_up_proj", "moe_act"}  # section 3.2.3


def test_layout_for_1024_gpus():
    """NVIDIA's: TP2 PP8 VPP4 EP64, 32 stages, MTP and loss on stages of their own."""
    cfg = load("v3_pretrain_h100_1024")
    parallel, stages = cfg.parallel, parse_layout(cfg.parallel.pp_layout)
    assert (parallel.world_size, parallel.tp, parallel.pp, parallel.ep, parallel.etp) == (1024, 2, 8, 64, 1)
    assert virtual_stages(parallel) == 4
    assert (len(stages), stages[0], stages[1:30], stages[30:]) == (32, "Ettt", ("tt",) * 29, ("m", "L"))
    assert parallel.overlap_expert_all_to_all and parallel.delay_wgrad and parallel.dispatcher == "flex"


@pytest.mark.parametrize(("name", "length", "sequences", "cp"), [("32k", 32768, 1920, 8), ("128k", 131072, 480, 32)])
def test_extension(name, length, sequences, cp):
    """Section 4.3: factor 40, alpha 1, beta 32, original 4096; 1000 steps at 7.3e-6; tokens per step as before."""
    cfg = load(f"v3_extend_{name}")
    yarn, stage = cfg.model.yarn, cfg.stage
    assert (yarn.factor, yarn.beta_slow, yarn.beta_fast, yarn.original_max_positions) == (40.0, 1.0, 32.0, 4096)
    assert (yarn.mscale, yarn.mscale_all_dim) == (1.0, 1.0)
    assert (stage.seq_length, stage.batch_size, stage.steps) == (length, sequences, 1000)
    assert stage.seq_length * stage.batch_size == 62_914_560
    assert [at(cfg.lr.learning_rate, x) for x in (0, 62.9e9)] == [7.3e-6, 7.3e-6]
    assert (cfg.parallel.cp, stage.seq_length // cfg.parallel.cp) == (cp, 4096)
    assert cfg.lr.batch_size is None and stage.init_from is not None


def test_v2_lite():
    """V2 appendix B: 4.2e-4 after 2000 steps, times 0.316 at 80 % and 90 % of 5.7T tokens, 4608 sequences of 4096."""
    cfg = load("v2_lite_pretrain")
    rates = [at(cfg.lr.learning_rate, share * 5.7 * T) for share in (0.5, 0.8, 0.85, 0.95)]
    assert rates == pytest.approx([4.2e-4, 4.2e-4, 4.2e-4 * 0.316, 4.2e-4 * 0.316**2])
    assert at(cfg.lr.learning_rate, 1000 * 4608 * 4096) == pytest.approx(2.1e-4)
    assert (cfg.stage.batch_size, cfg.stage.seq_length) == (4608, 4096)
    assert cfg.stage.steps * 4608 * 4096 == pytest.approx(5.7 * T, rel=1e-5)
    model, parallel = cfg.model, cfg.parallel
    assert (model.router_bias, model.router_score, model.sequence_loss_coef, model.yarn.factor) == (
        False,
        "softmax",
        1e-3,
        1,
    )
    assert (parallel.ep, parallel.tp, parallel.pp, cfg.optim.clip_grad) == (
        1,
        1,
        4,
        1.0,
    )  # experts on one device, PP only
    assert parse_layout(parallel.pp_layout) == ("E" + "t" * 7, "t" * 7, "t" * 7, "t" * 6 + "L")


def test_moonlight():
    """Moonlight 3.3: 2048 sequences of 8192 until 200B, then 4096; 4.2e-4 cosine to 4.2e-5; last 1e-4 to 0."""
    cfg = load("moonlight_16b_pretrain")
    rate = cfg.lr.learning_rate
    assert at(rate, 1000 * 2048 * 8192) == pytest.approx(2.1e-4)
    assert at(rate, 2000 * 2048 * 8192) == pytest.approx(4.2e-4)
    assert at(rate, 5.2 * T) == pytest.approx(4.2e-5)
    assert at(rate, 5.2 * T + 100 * 4096 * 8192) == pytest.approx(1e-4)
    assert at(rate, 5.7 * T) == 0.0
    assert [at(cfg.lr.bias_rate, x * T) for x in (1, 5.2, 5.3)] == [1e-3, 1e-3, 0.0]
    assert [at(cfg.lr.batch_size, x) for x in (1e9, 200e9, 201e9, 5.7 * T)] == [2048, 2048, 4096, 4096]
    assert (cfg.stage.seq_length, cfg.model.mtp_depth, cfg.optim.weight_decay) == (8192, 0, 0.1)
    assert (cfg.parallel.tp, cfg.parallel.ep, cfg.parallel.world_size) == (2, 8, 8)


def pretrain_step(*overrides):
    """The pretrain step of mini_pretrain's schedule."""
    (planned,) = (item for item in plan_steps(overrides) if item.step.id == "pretrain")
    return load_config(planned.overrides, check_files=False)


@pytest.mark.parametrize(
    ("overrides", "world_size", "axes"),
    [
        (["experiment=mini_pretrain_4gpu"], 4, {"ep": 4}),
        (["experiment=mini_pretrain_4gpu", "parallel=mini_pp2_ep2"], 4, {"pp": 2, "ep": 2}),
        (["experiment=mini_pretrain_4gpu", "parallel=tp2_ep2"], 4, {"tp": 2, "ep": 2}),
        (["experiment=mini_pretrain", "cluster=two_gpus", "parallel=ep2"], 2, {"ep": 2}),
        (["experiment=mini_pretrain", "cluster=two_gpus", "parallel=mini_pp2"], 2, {"pp": 2}),
    ],
)
def test_mini_on_one_gpu_and_on_several_is_the_same_training(overrides, world_size, axes):
    one, several = pretrain_step("experiment=mini_pretrain"), pretrain_step(*overrides)
    assert (one.model, one.lr, one.optim, one.seed) == (several.model, several.lr, several.optim, several.seed)
    assert (dataclasses.replace(one.data, dir=several.data.dir), one.stage) == (several.data, several.stage)
    parallel = several.parallel
    assert (one.parallel.world_size, parallel.world_size) == (1, world_size)
    assert {axis: size for axis in ("tp", "pp", "ep", "cp", "etp") if (size := vars(parallel)[axis]) > 1} == axes
    assert one.stage.batch_size % (parallel.dp * one.stage.micro_batch_size) == 0


# The traps of published V3 configurations (C1 to C7).


@pytest.mark.parametrize("name", V3)
def test_trap_1_yarn_is_off_at_4k(name):
    assert load(name).model.yarn.factor == 1.0


@pytest.mark.parametrize("name", V3)
def test_trap_2_mtp_weight_changes(name):
    lr = load(name).lr
    assert at(lr.mtp_weight, T) == 0.3 != at(lr.mtp_weight, 12 * T)


@pytest.mark.parametrize("name", V3)
def test_trap_3_the_peak_is_the_pretraining_rate(name):
    rate = load(name).lr.learning_rate
    assert max(at(rate, x * T / 10) for x in range(149)) == 2.2e-4


@pytest.mark.parametrize("name", V3)
def test_trap_4_initialisation(name):
    assert load(name).model.init_std == 0.006


@pytest.mark.parametrize("name", V3)
def test_trap_5_balance_is_learned_and_ends_and_the_tail_has_two_steps(name):
    cfg = load(name)
    assert cfg.model.router_bias and at(cfg.lr.bias_rate, 14.5 * T) == 0.0
    assert [segment.shape for segment in cfg.lr.learning_rate.segments] == [
        "linear",
        "constant",
        "cosine",
        "constant",
        "constant",
    ]
    assert cfg.lr.batch_size is not None
    config = as_megatron_core_sees(cfg, cfg.parallel)
    assert not config.moe_router_force_load_balancing and config.moe_router_force_biased is None
    assert config.moe_router_enable_expert_bias


@pytest.mark.parametrize("name", V3)
def test_trap_6_the_sequence_loss_is_on(name):
    assert load(name).model.sequence_loss_coef == 1e-4


@pytest.mark.parametrize("name", V3)
def test_trap_7_61_layers_have_a_layout_and_sequence_parallelism_follows_tp(name):
    cfg = load(name)
    assert "".join(parse_layout(cfg.parallel.pp_layout)).count("t") == 61
    assert as_megatron_core_sees(cfg, cfg.parallel).sequence_parallel == (cfg.parallel.tp > 1)
    layouts = [ParallelConfig(world_size=tp, tp=tp) for tp in (1, 2, 4)]
    assert [as_megatron_core_sees(cfg, layout).sequence_parallel for layout in layouts] == [False, True, True]
