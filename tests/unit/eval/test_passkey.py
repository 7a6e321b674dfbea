"""Passkey prompts: length, place of the key, and the accuracy grid by hand."""

import pytest

from r1train.config.schema_eval import PasskeyConfig
from r1train.data.passkey_text import FILLER
from r1train.errors import DataError
from r1train.eval.passkey import batches, found_key, grid, passkey_prompts

PASSKEY = PasskeyConfig(lengths=(200, 500), depths=(0.0, 0.5, 1.0), problems=2)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_prompts_have_their_length_and_depth(tokenizer, form):
    config = PasskeyConfig(lengths=PASSKEY.lengths, depths=PASSKEY.depths, problems=2, form=form)
    prompts = passkey_prompts(config, tokenizer, seed=3)
    longest_sentence = max(len(tokenizer.encode(sentence)) for sentence in FILLER)
    assert len(prompts) == 12
    for prompt in prompts:
        length, depth = prompt.metadata["length"], prompt.metadata["depth"]
        assert length - longest_sentence <= len(prompt.token_ids) <= length
        assert prompt.question.count(prompt.answer) == 2 and len(prompt.answer) == 5
        before, _, after = prompt.question.partition("The pass key is " + prompt.answer)
        left, right = (sum(part.count(sentence.strip()) for sentence in FILLER) for part in (before, after))
        assert left == pytest.approx(depth * (left + right), abs=0.5)
        assert (prompt.token_ids[0] == tokenizer.bos_id) == (form == "chat")
    at_the_end = [p.metadata["place"] for p in prompts if p.metadata["depth"] == 1.0]
    at_the_beginning = [p.metadata["place"] for p in prompts if p.metadata["depth"] == 0.0]
    assert min(at_the_end) > 0.6 and max(at_the_beginning) < 0.35


def test_keys_depend_on_the_seed_and_the_cell_only(tokenizer):
    first = passkey_prompts(PASSKEY, tokenizer, seed=3)
    fewer = passkey_prompts(PasskeyConfig(lengths=(500,), depths=(0.5,), problems=1), tokenizer, seed=3)
    assert fewer[0] == next(prompt for prompt in first if prompt.id == "passkey/500/0.5/0")
    assert len({prompt.answer for prompt in first}) == 12
    assert [p.answer for p in passkey_prompts(PASSKEY, tokenizer, seed=4)] != [p.answer for p in first]


def test_a_length_that_holds_nothing(tokenizer):
    with pytest.raises(DataError, match=r"lengths: 20 tokens do not hold key and question. Fix: \d+ or more"):
        passkey_prompts(PasskeyConfig(lengths=(20,), depths=(0.0,), problems=1), tokenizer, seed=1)


@pytest.mark.parametrize(
    ("response", "right"),
    [(" {key}. Remember", True), ("the number {key}", True), (" 9{key}", False), ("7 {key}", False), ("", False)],
)
def test_the_first_digits_count(tokenizer, group_of, response, right):
    prompt = passkey_prompts(PASSKEY, tokenizer, seed=3)[0]
    (sample,) = group_of(prompt, [response.format(key=prompt.answer)]).samples
    assert found_key(sample, prompt) is right


def test_grid_by_hand(tokenizer):
    prompts = passkey_prompts(PASSKEY, tokenizer, seed=3)
    # Length 200: all right. Length 500: depth 0 right, depth 0.5 one of two, depth 1 none.
    correct = [True] * 6 + [True, True, True, False, False, False]
    assert grid(prompts, correct) == {
        "200@0": 1.0,
        "200@0.5": 1.0,
        "200@1": 1.0,
        "200": 1.0,
        "500@0": 1.0,
        "500@0.5": 0.5,
        "500@1": 0.0,
        "500": 0.5,
        "@0": 1.0,
        "@0.5": 0.75,
        "@1": 0.5,
    }


def test_batches_hold_so_many_tokens_per_rank(tokenizer):
    prompts = passkey_prompts(PASSKEY, tokenizer, seed=3)
    # 1,000 tokens: five prompts of 200 or two of 500 on each of two ranks; six of each length.
    assert [len(part) for part in batches(prompts, tokens=1000, ranks=2)] == [6, 4, 2]
    assert [prompt for part in batches(prompts, tokens=1, ranks=1) for prompt in part] == prompts
