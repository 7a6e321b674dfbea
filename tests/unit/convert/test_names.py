"""The name table against published counts, and shard by shard."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from r1train.convert.export_plan import FP8, read_model, released_size
from r1train.convert.live import hf_weights
from r1train.convert.names import Part, Run, entries, stale_names
from r1train.plan.shape import count_parameters

BF16 = torch.bfloat16


def shipped(repo: Path, name: str):
    return read_model(repo / "conf" / "model" / f"{name}.yaml")


def test_deepseek_v3_is_the_released_checkpoint(repo):
    """91,991 tensors, 684,531,386,000 elements, 688,574,839,360 bytes with FP8 scales; 684,489,845,504 without."""
    model = shipped(repo, "deepseek_v3")
    assert released_size(model, FP8) == (91_991, 684_531_386_000, 688_574_839_360)
    tensors, elements, size = released_size(model, BF16)
    assert (tensors, elements) == (46_183, 684_489_845_504)
    assert size == 2 * (684_489_845_504 - 59 * 256) + 4 * 59 * 256  # the correction biases are fp32


def test_moonlight_has_5344_tensors_with_its_27_stale_ones(repo):
    model = shipped(repo, "moonlight_16b")
    tensors, elements, _ = released_size(model, BF16)
    assert (tensors, tensors + len(stale_names(model))) == (5_317, 5_344)
    assert elements == 15_960_110_208


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("deepseek_v2_lite", 15_706_484_224),
        ("smollm2_135m", 134_515_008),
        ("qwen2_5_1_5b", 1_543_714_304),
        ("llama3_1_8b", 8_030_261_248),
    ],
)
def test_elements_of_other_models(repo, name, elements):
    assert released_size(shipped(repo, name), BF16)[1] == elements


@pytest.mark.parametrize("name", ["deepseek", "moonlight", "v2_lite"])
def test_table_and_planner_count_the_same(models, name):
    model = models[name]
    ours = {entry.key: entry.global_shape for entry in entries(model)}
    total = sum(torch.Size(shape).numel() for shape in ours.values())
    assert total == count_parameters(model).total


@pytest.mark.parametrize("name", ["deepseek", "moonlight", "v2_lite", "llama", "qwen"])
def test_every_row_has_one_place(models, name):
    """The runs of an entry cover our rows once and in order, and every part's rows once."""
    found = entries(models[name])
    names = [part.name for entry in found for part in entry.parts]
    assert len(names) == len(set(names))
    for entry in found:
        ours = [row for run in entry.runs() for row in range(run.ours, run.ours + run.count)]
        assert ours == list(range(entry.shape[0]))
        for number, part in enumerate(entry.parts):
            rows = [run.start + i for run in entry.runs() if run.part == number for i in range(run.count)]
            assert rows == list(range(part.shape[0]))


def test_query_key_value_interleave_by_group(models):
    """Two groups of three query heads, width 12: 36 query rows, 12 of key, 12 of value, and again."""
    entry = next(
        entry for entry in entries(models["llama"]) if entry.key.endswith("0.self_attention.linear_qkv.weight")
    )
    prefix = "model.layers.0.self_attn."
    assert entry.parts == (
        Part(f"{prefix}q_proj.weight", (72, 48)),
        Part(f"{prefix}k_proj.weight", (24, 48)),
        Part(f"{prefix}v_proj.weight", (24, 48)),
    )
    assert entry.runs() == [
        *(Run(0, 0, 0, 36), Run(1, 0, 36, 12), Run(2, 0, 48, 12)),
        *(Run(0, 36, 60, 36), Run(1, 12, 96, 12), Run(2, 12, 108, 12)),
    ]


@dataclass
class Shard:
    key: str
    global_offset: tuple[int, ...]
    data: torch.Tensor


def test_live_shards_come_out_under_hugging_face_names(models):
    """Expert parallel rank 1 of 2 with gate and up apart, and one layer's fused query, key and value."""
    found = [
        e for e in entries(models["deepseek"]) if e.key == "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
    ]
    weights = {(e, row): torch.full((20, 48), float(10 * e + row)) for e in range(4) for row in (0, 20)}
    shards = [Shard(found[0].key, (e, row, 0), weights[e, row]) for e in (2, 3) for row in (0, 20)]
    sent = dict(hf_weights(found, shards))
    prefix = "model.layers.1.mlp.experts."
    assert list(sent) == [f"{prefix}{e}.{part}_proj.weight" for e in (2, 3) for part in ("gate", "up")]
    assert sent[f"{prefix}3.up_proj.weight"].eq(50.0).all()
    assert sent[f"{prefix}2.gate_proj.weight"].data_ptr() == weights[2, 0].data_ptr()

    qkv = [e for e in entries(models["llama"]) if e.key == "decoder.layers.1.self_attention.linear_qkv.weight"]
    rows = torch.arange(120.0)[:, None].expand(-1, 48)
    sent = dict(hf_weights(qkv, [Shard(qkv[0].key, (60, 0), rows[60:]), Shard(qkv[0].key, (0, 0), rows[:60])]))
    key = sent["model.layers.1.self_attn.k_proj.weight"][:, 0]
    assert key.tolist() == [*range(36, 48), *range(96, 108)]
    half = dict(hf_weights(qkv, [Shard(qkv[0].key, (0, 0), rows[:60])]))
    assert half == {}
