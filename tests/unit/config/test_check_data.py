"""Rules about the data in more than one config: shares, given tokenizers, problems from files."""

import pytest

PRETRAIN = "stage=pretrain"


def test_a_given_tokenizer_needs_no_corpora(problems):
    """But one that is trained does, and so does pre-training."""
    none, given = ("stage=prepare", "data.corpora=[]"), "data.tokenizer=x"
    assert "no corpus" in problems(*none)["data.corpora"].what
    assert problems(*none, given) == {}
    assert "no corpus" in problems(PRETRAIN, "data.corpora=[]", given)["data.corpora"].what


def test_problems_from_files_need_both(problems):
    """A set that nothing is asked of needs no file."""
    one, other = "data.tasks.0.train_file=x", "data.tasks.0.heldout_file"
    assert "256 problems are asked for" in problems(PRETRAIN, one)[other].what
    assert problems(PRETRAIN, one, f"{other}=y") == {}
    assert problems(PRETRAIN, one, "data.tasks.0.heldout=0") == {}
    assert (
        "600 problems" in problems(PRETRAIN, f"{other}=y", "data.tasks.0.cold_start=0")["data.tasks.0.train_file"].what
    )


def test_negative_weights_and_shares(problems):
    found = problems(PRETRAIN, "data.corpora.0.weight=-1", "data.tasks.0.styles={steps: 2.0, direct: -1.0}")
    assert found["data.corpora.0.weight"].what == "below 0"
    assert "0 or more" in found["data.tasks.0.styles"].what


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", ".a", "a b", "\u00e9", "/tmp/a", "a\\n"])
def test_a_corpus_is_named_as_a_file_can_be(problems, name):
    found = problems(PRETRAIN, f'data.corpora.0.name="{name}"')
    assert "files are named after it" in found["data.corpora.0.name"].what
    assert problems(PRETRAIN, "data.corpora.0.name=9Web_2024.v1-b") == {}


def test_no_corpus_has_the_name_of_anothers_held_out_documents(problems):
    assert (
        "is for the held-out documents"
        in problems(PRETRAIN, "data.corpora.0.name=a_heldout")["data.corpora.0.name"].what
    )
    assert problems(PRETRAIN, "data.corpora.0.name=a_heldout_b") == {}


def test_not_every_boundary_is_split(problems):
    found = problems(PRETRAIN, "data.boundary_split_rate=1", "data.pre_tokenizer=deepseek_v3")
    assert "outside" in found["data.boundary_split_rate"].what
