"""Every rule of config/check_fp8.py reports a config that breaks it; the models that ship pass."""

import pytest

from r1train.config import check_fp8
from r1train.config.load import load_config

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
TWO = ("cluster=two_gpus", "parallel.world_size=2", "parallel.tp=2")


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (
            ["stage.seq_length=101", "stage.micro_batch_size=4"],
            "stage.seq_length",
            "multiple of 8 tokens on a rank: of 4 x 101",
        ),
        # 4 x 100 = 400 = 8 x 50, but not 16 x 25.
        ([*TWO, "stage.seq_length=98", "stage.micro_batch_size=4"], "stage.seq_length", "cut over 2 ranks"),
        (["model.moe_ffn_hidden_size=100"], "optim.precision", "moe_ffn_hidden_size = 100"),
        (["model.kv_lora_rank=120"], "optim.precision", "kv_lora_rank = 120, kv_lora_rank + qk_rope_head_dim = 152"),
        ([*TWO, "model.ffn_hidden_size=1552"], "optim.precision", "ffn_hidden_size = 776"),
        (["optim.precision=fp8_tensorwise", "model.v_head_dim=33"], "optim.precision", "* v_head_dim = 264"),
    ],
)
def test_a_rule_reports(problems, overrides, key, says):
    assert says in problems(*FP8, *SIZES, *overrides)[key].what


@pytest.mark.parametrize(
    "overrides", [[], [*TWO], ["stage.seq_length=100"], ["model.moe_ffn_hidden_size=100", "optim.precision=bf16"]]
)
def test_whole_units_pass(problems, overrides):
    assert problems(*FP8, *SIZES, *overrides) == {}


def test_widths_of_deepseek_v3_over_two_tensor_ranks():
    cfg = load_config(["experiment=v3_pretrain_h100_1024", "stage=pretrain", "step=pretrain"], check_files=False)
    widths = check_fp8.widths_on_a_rank(cfg.model, cfg.parallel)
    assert cfg.parallel.tp == 2
    assert widths["num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)"] == 64 * 192
    assert widths["kv_lora_rank + qk_rope_head_dim"] == 576
    assert widths["ffn_hidden_size"] == 9216
    assert all(size % check_fp8.WIDTH == 0 for size in widths.values())
