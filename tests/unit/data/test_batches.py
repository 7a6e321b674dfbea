"""Chat samples, packing, packed batches, SFT rows and prompt sets: values by hand, purity in position."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1train.data.batch import pack
from r1train.data.chat import Sample, chat_sample, prompt_tokens
from r1train.data.packing import best_fit
from r1train.data.prompts import PromptSet
from r1train.data.sft import SftSource
from r1train.errors import DataError


def names(count):
    return [f"n{index}" for index in range(count)]


def test_chat_sample_by_hand(small_tokenizer):
    tok = small_tokenizer
    sample = chat_sample(tok, "4+7= <think>", "<think>hm</think><answer>11</answer>", id="a")
    question, hm, one = tok.encode("4+7= <think>"), tok.encode("hm"), tok.encode("1")
    expected = [0, 3, *question, 4, 5, *hm, 6, 7, *one, *one, 8, 1]
    assert sample.tokens.tolist() == expected
    assert 5 not in question
    before = 3 + len(question)
    assert sample.trained.tolist() == [0.0] * before + [1.0] * (len(expected) - before)
    assert prompt_tokens(tok, "4+7= <think>") == expected[:before]


def test_best_fit_by_hand():
    # 6 opens a bin; 5 opens a second; the 4 fits the fuller first one exactly; 3 and 2 complete the second.
    assert best_fit([3, 6, 2, 5, 4], 10, names=names(5)) == [[1, 4], [3, 0, 2]]
    assert best_fit([5, 5, 5], 5, names=names(3)) == [[0], [1], [2]]
    assert best_fit([], 5, names=[]) == []


def test_best_fit_takes_the_fullest_bin():
    # After 7 and 6 (rooms 3 and 4), the 3 goes to room 3 although the bin with room 4 would hold it as well.
    assert best_fit([6, 7, 3], 10, names=names(3)) == [[1, 2], [0]]


def test_best_fit_names_what_is_too_long():
    with pytest.raises(DataError, match=r"2 of 3 examples are longer than 4 tokens: n0 \(5\), n2 \(9\)"):
        best_fit([5, 4, 9], 4, names=names(3))


@given(st.lists(st.integers(1, 50), max_size=80), st.randoms())
def test_best_fit_invariants(lengths, random):
    bins = best_fit(lengths, 50, names=names(len(lengths)))
    assert sorted(index for chosen in bins for index in chosen) == list(range(len(lengths)))
    loads = sorted(sum(lengths[index] for index in chosen) for chosen in bins)
    assert all(load <= 50 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 50
    shuffled = random.sample(lengths, len(lengths))
    assert len(best_fit(shuffled, 50, names=names(len(lengths)))) == len(bins)


def sample(tokens, trained, **extras):
    arrays = {name: np.array(value, dtype=np.float32) for name, value in extras.items()}
    return Sample("s", np.array(tokens), np.array(trained, dtype=np.float32), arrays)


def test_pack_by_hand():
    batch = pack(
        [
            sample([10, 11, 12, 13], [0, 0, 1, 1], advantages=[0, 0, 0.5, 0.25]),
            sample([20, 21, 22], [0, 1, 1], advantages=[9, -1, -2]),
        ],
        seq_length=10,
        pad_id=2,
    )
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21, 22, 2, 2, 2]
    assert batch.labels.tolist() == [11, 12, 13, 2, 21, 22, 2, 2, 2, 2]
    assert batch.loss_mask.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert batch.extras["advantages"].tolist() == [0, 0.5, 0.25, 0, -1, -2, 0, 0, 0, 0]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 10]
    assert (batch.max_seqlen, batch.num_targets) == (4, 4.0)
    kinds = [batch.tokens.dtype, batch.labels.dtype, batch.positions.dtype, batch.cu_seqlens.dtype]
    assert kinds == [torch.int64, torch.int64, torch.int64, torch.int32]
    assert (batch.loss_mask.dtype, batch.extras["advantages"].dtype) == (torch.float32, torch.float32)
    moved = batch.to("cpu")
    assert moved.cu_seqlens.tolist() == [0, 4, 7, 10]
    assert moved.extras.keys() == {"advantages"}


def test_pack_full_and_empty_rows():
    full = pack([sample([5, 6, 7], [0, 1, 1])], seq_length=3, pad_id=2)
    assert full.cu_seqlens.tolist() == [0, 3]
    empty = pack([], seq_length=3, pad_id=2)
    assert (empty.tokens.tolist(), empty.cu_seqlens.tolist(), empty.num_targets) == ([2, 2, 2], [0, 3], 0.0)
    assert empty.positions.tolist() == [0, 1, 2]


@pytest.fixture
def sft_file(tmp_path):
    path = tmp_path / "sft.jsonl"
    rows = [{"id": str(n), "prompt": f"{n}+1=", "response": f"<answer>{'1' * (n % 9 + 1)}</answer>"} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def equal(left, right):
    fields = ("tokens", "labels", "loss_mask", "positions", "cu_seqlens")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in fields)


def segments(batch):
    cuts = batch.cu_seqlens.tolist()
    return [tuple(batch.tokens[a:b].tolist()) for a, b in zip(cuts, cuts[1:], strict=False)]


def test_sft_every_epoch_has_every_example_once(sft_file, small_tokenizer):
    source = SftSource(sft_file, small_tokenizer, seq_length=64, seed=3)
    expected = sorted(tuple(item.tokens.tolist()) for item in source.samples)
    orders, companions = [], []
    for epoch in range(3):
        rows = source.batch(epoch * source.rows_per_epoch, source.rows_per_epoch)
        found = [segment for row in rows for segment in segments(row) if segment[0] == small_tokenizer.bos_id]
        assert sorted(found) == expected
        targets = sum(row.num_targets for row in rows)
        assert targets == sum(item.trained.sum() for item in source.samples)
        orders.append(found)
        companions.append({frozenset(segments(row)) for row in rows})
    assert len(companions[0] & companions[1]) < len(companions[0]) // 2
    assert orders[0] != orders[1] != orders[2]


def test_sft_is_pure_in_position(sft_file, small_tokenizer):
    source = SftSource(sft_file, small_tokenizer, seq_length=64, seed=3)
    through = [source.row(index) for index in range(3 * source.rows_per_epoch)]
    for index in (5, 2 * source.rows_per_epoch + 1, 0, source.rows_per_epoch):
        fresh = SftSource(sft_file, small_tokenizer, seq_length=64, seed=3)
        assert equal(fresh.row(index), through[index])
    ranks = [source.batch(4, 6, dp_rank=rank, dp_size=2) for rank in range(2)]
    assert all(equal(a, b) for a, b in zip(ranks[0] + ranks[1], through[4:10], strict=True))
    other = SftSource(sft_file, small_tokenizer, seq_length=64, seed=4)
    assert not all(equal(other.row(index), through[index]) for index in range(source.rows_per_epoch))


def test_sft_refuses(sft_file, small_tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"examples are longer than 12 tokens: .*\("):
        SftSource(sft_file, small_tokenizer, seq_length=12, seed=0)
    with pytest.raises(DataError, match="no such file"):
        SftSource(tmp_path / "none.jsonl", small_tokenizer, seq_length=64, seed=0)
    for text, message in (
        ("", "empty, it has no rows"),
        ('{"id": "a", "prompt": "x"}\n', "1 of 1 rows are malformed:\n  - line 1: field 'response' is missing"),
        ('{"id": "a", "prompt": "x", "response": "y"}\n' * 2, r"1 ids occur more than once, for example \['a'\]"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            SftSource(tmp_path / "bad.jsonl", small_tokenizer, seq_length=64, seed=0)


def prompt_row(number, **changes):
    row = {
        "id": f"p{number}",
        "task": f"t{number % 2}",
        "question": f"{number}+1=",
        "answer": str(number + 1),
        "metadata": {},
    }
    return json.dumps({**row, **changes}) + "\n"


def test_prompt_set(tmp_path, small_tokenizer):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(prompt_row(number) for number in range(10)))
    prompts = PromptSet(path, small_tokenizer, seed=1)
    stream = prompts.take(0, 35)
    for epoch in range(3):
        assert sorted(prompt.id for prompt in stream[10 * epoch : 10 * epoch + 10]) == [f"p{n}" for n in range(10)]
    assert [p.id for p in stream[:10]] != [p.id for p in stream[10:20]]
    fresh = PromptSet(path, small_tokenizer, seed=1)
    assert fresh.take(17, 9) == stream[17:26]
    assert [p.id for p in PromptSet(path, small_tokenizer, seed=2).take(0, 10)] != [p.id for p in stream[:10]]
    assert stream[0].token_ids == tuple(prompt_tokens(small_tokenizer, stream[0].question))
    assert [p.id for p in prompts.of_task("t1")] == ["p1", "p3", "p5", "p7", "p9"]
    assert len(prompts) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, it has no rows"),
        (prompt_row(1) + prompt_row(1), "1 ids occur more than once"),
        (prompt_row(1, answer=""), "line 1: field 'answer' is empty"),
        (prompt_row(1, answer=None), "line 1: field 'answer' is NoneType, not str"),
        (prompt_row(1, metadata="x"), "line 1: field 'metadata' is str, not dict"),
        (prompt_row(1, question="1" * 40), r"1 of 1 prompts are longer than 20 tokens, the longest is p1 with 43"),
    ],
)
def test_prompt_set_refuses(tmp_path, small_tokenizer, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        PromptSet(path, small_tokenizer, seed=0, max_prompt_tokens=20)


def test_prompt_set_missing_file(tmp_path, small_tokenizer):
    with pytest.raises(DataError, match="no such file"):
        PromptSet(tmp_path / "none.jsonl", small_tokenizer, seed=0)
