"""Held-out documents of one build beside the corpus of another: the tool names them, the reader notices them."""

from pathlib import Path

import pytest

from r1train.data.corpus_build import BuildPlan, build_corpus
from r1train.data.corpus_check import check_heldout
from r1train.data.corpus_part import PartOptions
from r1train.data.documents import documents
from r1train.data.heldout import heldout_windows
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError

ENDINGS = (".bin", ".idx", ".json")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 300), folder)
    return folder


def plan(prefix, folder, **changes):
    return BuildPlan(("builtin:gsm8k",), prefix, PartOptions(tokenizer=str(folder), **changes))


def build(what):
    return build_corpus(what, workers=1, max_bad_rows=0, on_part=lambda *_: None)


def test_heldout_documents_do_not_survive_a_build_without_any(tmp_path, tokenizer_folder):
    """The second build trains on what the first held out. Named beforehand; and noticed where the files were mixed."""
    prefix, tokenizer = tmp_path / "web", Tokenizer.load(tokenizer_folder)
    assert build(plan(prefix, tokenizer_folder, heldout_fraction=0.2)).heldout is not None
    check_heldout(prefix, tokenizer)
    for ending in ENDINGS:
        (tmp_path / f"web{ending}").unlink()
    without = plan(prefix, tokenizer_folder)
    with pytest.raises(DataError, match=rf"^{prefix}_heldout.bin, .*_heldout.idx, .*_heldout.json: already there"):
        build(without)
    assert not without.folder.exists()
    for ending in ENDINGS:
        (tmp_path / f"web_heldout{ending}").rename(tmp_path / f"aside{ending}")
    assert build(without).heldout is None
    for ending in ENDINGS:
        (tmp_path / f"aside{ending}").rename(tmp_path / f"web_heldout{ending}")
    with pytest.raises(DataError, match="web_heldout: held-out documents of another build than web"):
        check_heldout(prefix, tokenizer)
    with pytest.raises(DataError, match="another build than web"):
        heldout_windows(tmp_path, "web", tokenizer, seq_length=8, max_tokens=100)


@pytest.mark.parametrize("name", ["web_heldout", "", ".."])
def test_names_that_are_no_corpus(tmp_path, tokenizer_folder, name):
    prefix = Path(name) if name in ("", "..") else tmp_path / name
    with pytest.raises(DataError, match="_heldout at the end is for held-out documents. Fix: another --out-prefix"):
        build(plan(prefix, tokenizer_folder))
