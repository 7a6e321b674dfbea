"""A small tokenizer for the data tests."""

import pytest

from r1train.data.documents import documents
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("small_tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 300), path)
    return Tokenizer.load(path)
