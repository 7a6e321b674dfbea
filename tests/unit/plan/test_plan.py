"""The planner against published counts, exact ranks of megatron-core on the meta device, and hand arithmetic."""

import json
from dataclasses import replace

import pytest

from r1train.__main__ import main
from r1train.config.load import compose_tree, load_config
from r1train.config.schema_model import AnyModelConfig, TokenMergingConfig
from r1train.config.validate import build
from r1train.plan.compute import flops_per_token
from r1train.plan.memory import rank_bytes
from r1train.plan.ranks import parameters_of_stages, pp_rank_of
from r1train.plan.shape import count_parameters

V3 = ["experiment=v3_pretrain_h800_2048"]


def model(name: str) -> AnyModelConfig:
    """A model option of conf/."""
    return load_config(["experiment=tiny", f"model={name}", "parallel.ep=1"], check_files=False).model


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


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("deepseek_v2_lite", (13_763_072, 81_007_104, 8_650_752, 584_847_872, 209_715_200, 15_706_484_224)),
        ("moonlight_16b", (13_763_072, 82_973_184, 8_650_752, 584_847_936, 335_544_320, 15_960_110_208)),
    ],
)
def test_v2_lite_and_moonlight(name, figures):
    counts = count_parameters(model(name))
    found = (counts.attention, counts.dense_layer, counts.expert, counts.moe_layer, counts.embedding, counts.main)
    assert found == figures
    assert counts.mtp == 0 and counts.total == counts.main


@pytest.mark.parametrize(
    ("name", "main_inside", "active", "active_without_embedding", "active_inside"),
    [
        ("deepseek_v3", 669_173_061_120, 37_552_297_472, 36_625_618_432, 35_698_939_392),
        ("deepseek_v2_lite", 15_287_053_824, 2_661_150_208, 2_451_435_008, 2_241_719_808),
        ("moonlight_16b", 15_289_021_568, 2_914_776_192, 2_579_231_872, 2_243_687_552),
    ],
)
def test_active_counts(name, main_inside, active, active_without_embedding, active_inside):
    """inside: without embedding and head."""
    counts = count_parameters(model(name))
    assert counts.main - 2 * counts.embedding == main_inside
    assert (counts.active, counts.active_without_embedding) == (active, active_without_embedding)
    assert counts.active - 2 * counts.embedding == active_inside


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("qwen2_5_1_5b", 1_543_714_304),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen2_5_math_1_5b", 1_543_714_304),
        ("qwen2_5_math_7b", 7_615_616_512),
        ("qwen2_5_14b", 14_770_033_664),
        ("qwen2_5_32b", 32_763_876_352),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_3_70b", 70_553_706_496),
    ],
)
def test_students_equal_their_published_counts(name, parameters):
    counts = count_parameters(model(name))
    assert counts.total == counts.main == counts.active == parameters


def test_smollm2_by_hand():
    """Attention 576 x (2 x 576 + 2 x 192), SwiGLU 3 x 576 x 1536, two norms; the table is the head, too."""
    counts = count_parameters(model("smollm2_135m"))
    assert counts.attention == 884_736
    assert counts.dense_layer == 884_736 + 2_654_208 + 2 * 576
    assert counts.embedding == 49_152 * 576 == 28_311_552
    assert counts.main == 28_311_552 + 30 * 3_540_096 + 576
    assert counts.active_without_embedding == counts.main  # the head computes with the table


def test_qwen_biases_by_hand():
    """3584 x (2 x 3584 + 2 x 512) weights, and biases of 3584 + 512 + 512 on query, key and value."""
    assert count_parameters(model("qwen2_5_7b")).attention == 29_360_128 + 4_608


def test_mini_is_about_150_million():
    counts = count_parameters(model("mini"))
    assert (counts.main, counts.total, counts.active) == (145_409_344, 156_487_904, 62_833_984)


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
    v3 = load_config(V3, check_files=False).model
    main_only = flops_per_token(v3, seq_length=length, mtp=False, causal=causal)
    with_mtp = flops_per_token(v3, seq_length=length, mtp=True, causal=causal)
    assert round(main_only / 1e9, 2) == main_gflop
    assert round(with_mtp / 1e9, 2) == mtp_gflop


def test_windows_take_flops_away():
    """Tiny, 4 heads of 48 + 16, 8 tokens: a window of 2 sees 2 - 4 / 16 = 1.75 of them on average, no window 4."""
    tiny = model("tiny")
    every = flops_per_token(tiny, seq_length=8, mtp=True)
    some = flops_per_token(replace(tiny, attention_windows=(2, None, 8)), seq_length=8, mtp=True)
    assert every - some == pytest.approx(3 * 2 * 4 * (48 + 16) * (4 - 1.75))


def test_merged_tokens_take_flops_away():
    """Tiny's two MoE layers once per four tokens: a quarter of their weights, a sixteenth of their scores."""
    tiny = model("tiny")
    merged = replace(tiny, token_merging=TokenMergingConfig(first_layer=2, last_layer=3, window=4))
    counts, hidden = count_parameters(tiny), tiny.hidden_size
    moe_layers = counts.active - 2 * counts.embedding - hidden - counts.dense_layer
    every, some = (flops_per_token(one, seq_length=8, mtp=True) for one in (tiny, merged))
    scores = 2 * 4 * (48 + 16) * 4
    spared = 6 * moe_layers * 3 / 4 + 3 * 2 * scores * 15 / 16
    assert every - some == pytest.approx(spared - 6 * 2 * hidden)  # its own weights cost something
    assert count_parameters(merged).total - counts.total == 2 * hidden


def test_medium_flops_per_token():
    assert round(flops_per_token(model("deepseek_v2_lite"), seq_length=4096, mtp=True) / 1e9, 2) == 16.41
    assert round(flops_per_token(model("moonlight_16b"), seq_length=4096, mtp=True) / 1e9, 2) == 17.17
    assert round(flops_per_token(model("moonlight_16b"), seq_length=8192, mtp=True) / 1e9, 2) == 18.87


def test_dense_flops_per_token():
    """6 x 134,515,008 (the tied table as head), and 3 x 2 x 9 heads x (64 + 64) x 2048 / 2 x 30 layers of scores."""
    found = flops_per_token(model("smollm2_135m"), seq_length=2048, mtp=True)
    assert found == 6 * 134_515_008 + 3 * 2 * 9 * 128 * 1024 * 30


def test_dense_ranks_by_hand():
    """A tied table is on the first and the last stage; tensor parallelism cuts all but the norms."""
    overrides = ["experiment=tiny", "model=smollm2_135m", "parallel.ep=1"]
    (single,) = parameters_of_stages(load_config(overrides, check_files=False))
    assert (single.dense, single.expert) == (134_515_008, 0)
    first, last = parameters_of_stages(load_config([*overrides, "parallel.pp=2"], check_files=False))
    assert first.total == 28_311_552 + 15 * 3_540_096
    assert last.total == 28_311_552 + 15 * 3_540_096 + 576
    cut = ["experiment=tiny", "model=llama3_1_8b", "parallel.ep=1", "parallel.tp=2"]
    (half,) = parameters_of_stages(load_config(cut, check_files=False))
    norms = 65 * 4096
    assert half.total == (8_030_261_248 - norms) // 2 + norms


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
    """Numbers: sum of numel over GPTModel.parameters(), megatron-core 0.19.2, local spec, fake process group.

    The config is not checked: etp = 2 counts like this on a CPU, but cannot run there.
    """
    cfg, problems = build(compose_tree([*TINY, *overrides]))
    assert problems == []
    stages = parameters_of_stages(cfg)
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
    cfg = load_config([*TINY, "parallel=single", "cluster.processes_per_node=1"], check_files=False)
    (params,) = parameters_of_stages(cfg)
    used = rank_bytes(cfg, params)
    # 795,872 over two ranks of experts; here each of four layers has the other four experts of 3 x 128 x 48 as well.
    whole = 795_872 + 4 * 4 * 3 * 128 * 48
    assert (used.weights, used.gradients, used.optimizer) == (4 * whole, 4 * whole, 8 * whole)
    assert used.total == 16 * whole


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
