"""The prepare stage with a tokenizer that is given: copied as it is, prompts in its format, no corpora needed."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as Bpe
from tokenizers import models, pre_tokenizers

from r1train.config.schema_train import CorpusConfig, DataConfig, TaskConfig
from r1train.data.corpus_check import check_corpus
from r1train.data.prompts import PromptSet
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError
from r1train.stages import prepare

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TASK = TaskConfig(name="gsm8k", train=3, heldout=2, cold_start=0, params={}, styles={}, template="Q: {question}")


@pytest.fixture
def given(tmp_path):
    """A byte-level tokenizer without merges: 256 bytes and four tokens; the last of them ends documents."""
    folder = tmp_path / "given"
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Bpe(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens(["<user>", "<assistant>", "<end>", "<text>"])
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<text>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights stay where they are")
    return folder


def config(tmp_path, given, **changes):
    data = DataConfig(
        name="test",
        dir=str(tmp_path / "data"),
        tokenizer=str(given),
        tokenizer_vocab_size=260,
        corpora=(),
        tasks=(TASK,),
        worked_examples=0,
        seed=1,
    )
    return SimpleNamespace(data=dataclasses.replace(data, **changes))


def test_prompts_in_its_format(tmp_path, given):
    summary = prepare.run(config(tmp_path, given))
    assert (summary["train"], summary["heldout"], summary["cold_start"]) == ({"gsm8k": 3}, {"gsm8k": 2}, 0)
    folder = tmp_path / "data" / "tokenizer"
    names = ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all((folder / name).read_bytes() == (given / name).read_bytes() for name in names)
    tokenizer = Tokenizer.load(folder)
    for prompt in PromptSet(tmp_path / "data" / "prompts" / "train.jsonl", tokenizer, seed=1).prompts:
        assert prompt.question.startswith("Q: ")
        assert prompt.token_ids == (256, *tokenizer.encode(prompt.question), 258, 257)


def test_documents_end_with_its_own_token(tmp_path, given):
    corpora = (CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0),)
    summary = prepare.run(config(tmp_path, given, corpora=corpora))
    prefix, tokenizer = tmp_path / "data" / "corpus" / "gsm8k", Tokenizer.load(given)
    check_corpus(prefix, tokenizer)
    assert summary["corpora"]["gsm8k"]["documents"] == 300
    assert (tokenizer.document_end_id, tokenizer.eos_id) == (259, 258)
    last = prefix.with_suffix(".bin").read_bytes()[-2:]
    assert int.from_bytes(last, "little") == 259


def test_what_it_is_made_from(tmp_path, given):
    """The same again does nothing; another template is another input; what is refused leaves all as it was."""
    prepare.run(config(tmp_path, given))
    marker = (tmp_path / "data" / "_DONE").read_text()
    prepare.run(config(tmp_path, given))
    assert (tmp_path / "data" / "_DONE").read_text() == marker
    with pytest.raises(DataError, match="given has token ids below 260. Fix: data.tokenizer_vocab_size"):
        prepare.run(config(tmp_path, given, tokenizer_vocab_size=300))
    (given / "chat_template.jinja").write_text("{{ 'x' }}")
    with pytest.raises(DataError, match="does not show every message once"):
        prepare.run(config(tmp_path, given))
    assert (tmp_path / "data" / "_DONE").read_text() == marker
    with pytest.raises(DataError, match="corpora are"):
        prepare.run(config(tmp_path, given, tokenizer=None))
