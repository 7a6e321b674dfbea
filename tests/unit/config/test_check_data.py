"""Rules about the data in more than one config: shares, given tokenizers, problems from files."""

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
