"""Every rule of config/check_fp8.py reports a config that breaks it; the models that ship pass."""

import pytest

from r1train.config import check_fp8
from r1train.config.load import load_config
from r1train.config.widths import matrix_widths

PRETRAIN = ("stage=pretrain", "evaluate_after=false")
FP8 = (
    *PRETRAIN,
    "cluster=one_gpu",
    "parallel=single",
    "model=mini",
    "optim=adamw_bf16",
    "optim.precision=fp8_blockwise",
)
SIZES = ("data.tokenizer_vocab_size=512", "stage.seq_length=128", "stage.batch_size=16", "stage.micro_batch_size=4")
EVALUATE = ("stage=evaluate", "stage.init_from=somewhere")
DENSE_LAYERS = ("model.num_dense_layers=${model.num_layers}",)
MTP = ("model.mtp_depth=1",)
TWO = ("cluster=two_gpus", "parallel.world_size=2", "parallel.tp=2")


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (
            ["stage.seq_length=101", "stage.micro_batch_size=4"],
            "stage.seq_length",
            "multiple of 8 tokens on a rank: of 4 x 101",
        ),
        # 4 x 98 = 392 = 8 x 49, no multiple of 16.
        ([*TWO, "stage.seq_length=98", "stage.micro_batch_size=4"], "stage.seq_length", "cut over 2 ranks"),
        (["model.moe_ffn_hidden_size=100"], "optim.precision", "moe_ffn_hidden_size = 100"),
        (["model.kv_lora_rank=120"], "optim.precision", "kv_lora_rank = 120, kv_lora_rank + qk_rope_head_dim = 152"),
        ([*TWO, "model.ffn_hidden_size=1552"], "optim.precision", "ffn_hidden_size = 776"),
        ([*EVALUATE, "eval.perplexity_length=100"], "eval.perplexity_length", "of 1 x 100, cut over 1 ranks"),
        ([*EVALUATE, "model.kv_lora_rank=120"], "optim.precision", "kv_lora_rank = 120"),
        # MTP's block has experts where no layer has.
        ([*DENSE_LAYERS, *MTP, "model.moe_ffn_hidden_size=100"], "optim.precision", "moe_ffn_hidden_size = 100"),
        (["optim.precision=fp8_tensorwise", "model.v_head_dim=33"], "optim.precision", "* v_head_dim = 264"),
    ],
)
def test_a_rule_reports(problems, overrides, key, says):
    assert says in problems(*FP8, *SIZES, *overrides)[key].what


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*TWO],
        ["stage.seq_length=100"],
        ["model.moe_ffn_hidden_size=100", "optim.precision=bf16"],
        # No matrix has such a side.
        ["model.num_dense_layers=0", "model.ffn_hidden_size=100"],
        [*DENSE_LAYERS, "model.mtp_depth=0", "model.moe_ffn_hidden_size=100"],
        [*EVALUATE, "eval.perplexity_length=104"],
        # Nothing is multiplied.
        [*EVALUATE, "eval.perplexity_length=100", "data.corpora=[]", "data.tokenizer=somewhere"],
        ["model.kv_lora_rank=120", "stage=prepare"],
    ],
)
def test_whole_units_pass(problems, overrides):
    sizes = () if {"stage=evaluate", "stage=prepare"} & {*overrides} else SIZES
    assert problems(*FP8, *sizes, *overrides) == {}


def test_widths_of_an_engine_are_a_checkpoints_whole_ones():
    """V3's latent and rotary key are written together, 576 and no whole blocks, but nothing stands behind them."""
    cfg = load_config(["experiment=v3_pretrain_h100_1024", "stage=pretrain", "step=pretrain"], check_files=False)
    widths = {one.name: one for one in matrix_widths(cfg.model, mtp=False)}
    assert widths["num_shared_experts * moe_ffn_hidden_size"].cut == "tp"
    assert widths["moe_ffn_hidden_size"].cut == "experts" and widths["kv_lora_rank"].cut is None
    assert not widths["kv_lora_rank + qk_rope_head_dim"].ends_block
    assert {one.size % 128 for one in widths.values() if one.ends_block} == {0}


def test_widths_of_deepseek_v3_over_two_tensor_ranks():
    cfg = load_config(["experiment=v3_pretrain_h100_1024", "stage=pretrain", "step=pretrain"], check_files=False)
    widths = check_fp8.widths_on_a_rank(cfg.model, cfg.parallel)
    assert cfg.parallel.tp == 2
    assert widths["num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)"] == 64 * 192
    assert widths["kv_lora_rank + qk_rope_head_dim"] == 576
    assert widths["ffn_hidden_size"] == 9216
    assert all(size % check_fp8.WIDTH == 0 for size in widths.values())
