"""A small tokenizer and two small corpora for the data tests."""

import pytest

from r1train.data.corpus import write_corpus
from r1train.data.documents import documents
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("small_tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 300), path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_tokenizer):
    """Two corpora that tests blend: small (90 documents) and large (400)."""
    path = tmp_path_factory.mktemp("corpora")
    write_corpus([f"{'a' * (n % 7)} {n}" for n in range(90)], small_tokenizer, path / "small")
    write_corpus([f"b{n} c" for n in range(400)], small_tokenizer, path / "large")
    return path
