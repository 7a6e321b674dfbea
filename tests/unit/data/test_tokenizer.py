"""The tokenizer: round trip, specials, digits, determinism, and what it refuses."""

import json
import subprocess
import sys

import pytest

from r1train.data.documents import documents
from r1train.data.roles import ChatFrame
from r1train.data.tokenizer import SPECIAL_TOKENS, Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 400), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_specials_come_first(tokenizer):
    assert SPECIAL_TOKENS[:4] == ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>")
    ids = [tokenizer.encode(token, special=True) for token in SPECIAL_TOKENS]
    assert ids == [[0], [1], [2], [3], [4], [5], [6], [7], [8]]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.document_end_id) == (0, 1, 2, 1)
    assert tokenizer.chat == ChatFrame(before=(0, 3), after=(4,))
    assert tokenizer.vocab_size == 400


def test_special_spelling_in_plain_text_is_plain(tokenizer):
    ids = tokenizer.encode("a <think> b<|eos|>")
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(ids) == "a <think> b<|eos|>"
    assert 5 in tokenizer.encode("a <think> b", special=True)


@pytest.mark.parametrize(
    "text", ["", " ", "two  spaces\n\n\ttab", "caf\u00e9 \u4f60\u597d \U0001f600 \u00bd", "x=-12.50", "\u200b\u00a0"]
)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_many([text, text]) == [tokenizer.encode(text)] * 2


def test_round_trip_of_real_text(tokenizer):
    texts = list(documents("builtin:text"))
    encoded = tokenizer.encode_many(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert sum(map(len, encoded)) < 0.6 * sum(map(len, texts))


def test_digits_are_single(tokenizer):
    ids = tokenizer.encode("2024 120")
    assert [tokenizer.decode([token]) for token in ids] == ["2", "0", "2", "4", " ", "1", "2", "0"]


def test_training_is_deterministic_across_processes(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from r1train.data.documents import documents;"
        "from r1train.data.tokenizer import *;"
        "save_tokenizer(train_tokenizer(documents('builtin:gsm8k'), 400), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_vocabulary_size_is_exact_or_refused():
    assert train_tokenizer(["abab abab"], 267).get_vocab_size() == 267
    with pytest.raises(DataError, match="only enough merges for 26"):
        train_tokenizer(["abab"], 300)
    with pytest.raises(DataError, match="at least 265"):
        train_tokenizer(["abab"], 264)


def test_missing_and_foreign(tmp_path, folder):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="no tokenizer there"):
        Tokenizer.load(tmp_path)
    for text, message in (("{", "not JSON"), ("[]", "not a byte-level BPE"), ('{"model": {}}', "not a byte-level BPE")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Tokenizer.load(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][5]["content"] = "<thought>"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"5 is '<thought>', not '<think>'\), and no tokenizer_config.json says"):
        Tokenizer.load(tmp_path)
