"""The planner against published counts, exact ranks of megatron-core on the meta device, and hand arithmetic."""

import json

import pytest

from r1train.__main__ import main
from r1train.config.load import load_config
from r1train.config.schema_model import ModelConfig
from r1train.plan.compute import flops_per_token
from r1train.plan.memory import rank_bytes
from r1train.plan.ranks import parameters_of_stages, pp_rank_of
from r1train.plan.shape import count_parameters

V3 = ["experiment=v3_pretrain_h800_2048"]


def medium(**changes) -> ModelConfig:
    """What DeepSeek-V2-Lite and Moonlight-16B-A3B have in common (their released config.json)."""
    shape = dict(
        name="medium",
        hidden_size=2048,
        num_layers=27,
        num_dense_layers=1,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        num_experts=64,
        num_experts_per_token=6,
        num_shared_experts=2,
        moe_ffn_hidden_size=1408,
        num_expert_groups=1,
        num_groups_per_token=1,
        mtp_depth=0,
        rope_base=10000.0,
        yarn=None,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        init_std=0.02,
        sequence_loss_coef=1e-3,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
    return ModelConfig(**shape, **changes)


def v2_lite() -> ModelConfig:
    return medium(vocab_size=102400, ffn_hidden_size=10944, router_score="softmax", router_bias=False)


def moonlight() -> ModelConfig:
    return medium(vocab_size=163840, ffn_hidden_size=11264, router_score="sigmoid", router_bias=True)


def test_v3_equals_the_released_checkpoint():
    counts = count_parameters(load_config(V3, check_files=False).model)
    assert counts.attention == 187_107_328
    assert counts.dense_layer == 583_483_392
    assert counts.expert == 44_040_192
    assert counts.moe_layer == 11_507_286_272
    assert counts.embedding == 926_679_040
    assert counts.main == 671_026_419_200
    assert counts.mtp == 11_610_068_224
    assert counts.total == 682_636_487_424
    assert counts.active == 37_552_297_472
    assert counts.active_without_embedding == 36_625_618_432


def test_v2_lite_and_moonlight():
    lite, moon = count_parameters(v2_lite()), count_parameters(moonlight())
    assert (lite.main, lite.active, lite.total) == (15_706_484_224, 2_661_150_208, lite.main)
    assert (moon.main, moon.active, moon.moe_layer) == (15_960_110_208, 2_914_776_192, 584_847_936)


@pytest.mark.parametrize(
    ("length", "causal", "main_gflop", "mtp_gflop"),
    [
        (4096, True, 250.46, 260.65),
        (4096, False, 281.16, 291.85),
        (32768, True, 465.37, 479.09),
        (131072, True, 1202.23, 1228.02),
    ],
)
def test_v3_flops_per_token(length, causal, main_gflop, mtp_gflop):
    model = load_config(V3, check_files=False).model
    main_only = flops_per_token(model, seq_length=length, mtp=False, causal=causal)
    with_mtp = flops_per_token(model, seq_length=length, mtp=True, causal=causal)
    assert round(main_only / 1e9, 2) == main_gflop
    assert round(with_mtp / 1e9, 2) == mtp_gflop


def test_medium_flops_per_token():
    assert round(flops_per_token(v2_lite(), seq_length=4096, mtp=True) / 1e9, 2) == 16.41
    assert round(flops_per_token(moonlight(), seq_length=8192, mtp=True) / 1e9, 2) == 18.87


@pytest.mark.parametrize(
    ("rank", "parameters"), [(0, 3_086_286_848), (128, 1_636_630_528), (1920, 2_774_462_464), (2047, 2_774_462_464)]
)
def test_v3_ranks_equal_megatron_core_on_the_meta_device(rank, parameters):
    cfg = load_config(V3, check_files=False)
    assert parameters_of_stages(cfg)[pp_rank_of(cfg, rank)].total == parameters


# The shape that the numbers below were counted with; the tiny experiment itself may be tuned.
TINY = ["experiment=tiny", "model.num_layers=4", "model.qk_rope_head_dim=8"]
FOUR = ["parallel.world_size=4", "cluster.processes_per_node=4"]
EIGHT = ["parallel.world_size=8", "cluster.processes_per_node=8"]


@pytest.mark.parametrize(
    ("overrides", "first", "last"),
    [
        ([], 795_872, 795_872),
        ([*FOUR, "parallel.pp=2"], 321_216, 540_192),
        (["parallel.tp=2"], 548_576, 548_576),
        ([*EIGHT, "parallel.tp=2", "parallel.pp=2", "parallel.etp=2"], 161_472, 272_416),
        ([*FOUR, "parallel.pp=2", "model.num_layers=8", 'parallel.pp_layout="Ett|ttt|tt|tmL"'], 571_776, 790_752),
        ([*FOUR, "parallel.pp=2", "model.mtp_depth=0"], 321_216, 316_224),
    ],
    ids=["ep2", "pp2", "tp2", "tp2-pp2-etp2", "interleaved", "no-mtp"],
)
def test_tiny_ranks_equal_megatron_core_on_the_meta_device(overrides, first, last):
    """Numbers: sum of numel over GPTModel.parameters(), megatron-core 0.19.2, local spec, fake process group."""
    stages = parameters_of_stages(load_config([*TINY, *overrides], check_files=False))
    assert (stages[0].total, stages[-1].total) == (first, last)


def test_transformer_engine_keeps_down_projections_whole():
    both = [*TINY, "parallel.tp=2"]
    local = parameters_of_stages(load_config(both, check_files=False))[0]
    engine = parameters_of_stages(load_config([*both, "cluster.device=cuda"], check_files=False))[0]
    # Five blocks (four layers, MTP), 128 x (64 + 32 + 8) in the down projections, half of them on each rank.
    assert engine.total - local.total == 5 * 128 * 104 // 2


def test_stages_of_all_ranks_add_up_to_the_model():
    cfg = load_config(V3, check_files=False)
    counts = count_parameters(cfg.model)
    dense = sum(stage.dense for stage in parameters_of_stages(cfg))
    expert = sum(stage.expert for stage in parameters_of_stages(cfg)) * cfg.parallel.ep
    biases = 59 * 256  # buffers, so not among the parameters of a rank
    assert dense + expert == counts.total + counts.embedding - biases  # the MTP stage has a copy of the embedding


def test_bytes_of_a_v3_rank_by_hand():
    cfg = load_config(V3, check_files=False)
    params = parameters_of_stages(cfg)[1]
    used = rank_bytes(cfg, params)
    # Four MoE layers of four experts of 44,040,192 parameters; fp32 master and two bf16 moments: 8 bytes.
    assert params.expert == 16 * 44_040_192
    assert params.dense == 1_636_630_528 - 16 * 44_040_192
    assert used.weights == 2 * 1_636_630_528
    assert used.gradients == 4 * 1_636_630_528
    assert used.optimizer == 8 * (-(-params.dense // 128) + params.expert // 2)


def test_bytes_without_sharding_and_in_fp32():
    cfg = load_config([*TINY, "optim.distributed=false"], check_files=False)
    (params,) = parameters_of_stages(cfg)
    used = rank_bytes(cfg, params)
    assert (used.weights, used.gradients, used.optimizer) == (4 * 795_872, 4 * 795_872, 8 * 795_872)
    assert used.total == 16 * 795_872


@pytest.mark.parametrize("experiment", ["v3_pretrain_h800_2048", "tiny"])
def test_mode_plan_prints_and_writes_json(experiment, tmp_path, capsys):
    target = tmp_path / "plan.json"
    assert main(["mode=plan", f"experiment={experiment}", f"plan={target}"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(target.read_text())
    assert f"{record['parameters']['total']:,}" in printed
    assert all(f"{stage['parameters']:,}" in printed for stage in record["stages"])
    assert "activations" in record["not_counted"]
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
