"""Byte-level BPE: training it, and the thin class that the rest of the program encodes and decodes with.

Every byte is in the alphabet, so any text survives a round trip. Digits are always single tokens: numbers then have one
spelling, and arithmetic is learnt digit by digit. The special tokens come first, ids 0 to 8; those of FIM, where the
data ask for it, follow with ids 9 to 11.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1train.errors import DataError

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
FIM_TOKENS = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
TOKENIZER_FILE = "tokenizer.json"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, fim: bool = False) -> tokenizers.Tokenizer:
    """Train on `texts`; the same texts give the same tokenizer. fim: with the three tokens of data/fim.py.

    Raises DataError when vocab_size cannot hold the bytes and special tokens, or the texts have too few merges for it.
    """
    special_tokens = SPECIAL_TOKENS + FIM_TOKENS if fim else SPECIAL_TOKENS
    least = len(special_tokens) + 256
    if vocab_size < least:
        raise DataError(f"vocabulary of {vocab_size}: too small. Fix: at least {least} (256 bytes and special tokens)")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise DataError(
            f"vocabulary of {vocab_size}: the text has only enough merges for {bpe.get_vocab_size()}. "
            "Fix: give more text or a smaller vocabulary"
        )
    return bpe


def save_tokenizer(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    """Write folder/tokenizer.json under a temporary name, then rename."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (TOKENIZER_FILE + ".tmp")
    bpe.save(str(partial))
    os.replace(partial, folder / TOKENIZER_FILE)


class Tokenizer:
    """What train_tokenizer made, read from its folder. Ids of the special tokens are attributes.

    fim_ids: ids of FIM_TOKENS, or None when the tokenizer was trained without them. content_hash: sha256 of its file.
    """

    def __init__(self, folder: Path):
        """Raises DataError when folder/tokenizer.json is missing or is not one of ours."""
        text = _checked_json(folder / TOKENIZER_FILE)
        # Two copies: in prompts and corpora "<think>" is seven characters, not the special token.
        self._with_special = tokenizers.Tokenizer.from_str(text)
        self._plain = tokenizers.Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True
        self.vocab_size: int = self._plain.get_vocab_size()
        # _checked_json has made sure that special token number i has id i.
        self.bos_id, self.eos_id, self.pad_id, self.user_id, self.assistant_id = range(5)
        self.think_id, self.end_think_id, self.answer_id, self.end_answer_id = range(5, 9)
        fim_ids = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(FIM_TOKENS))
        has_fim = tuple(map(self._plain.id_to_token, fim_ids)) == FIM_TOKENS
        self.fim_ids: tuple[int, ...] | None = tuple(fim_ids) if has_fim else None
        self.content_hash = hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        return cls(Path(folder))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids. special: whether the spelling of a special token in `text` becomes that token."""
        bpe = self._with_special if special else self._plain
        return bpe.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """encode() of each text, without special tokens, on all allowed threads."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 (a sample cut in a character) become U+FFFD."""
        return self._plain.decode(list(ids), skip_special_tokens=skip_special)


def _checked_json(path: Path) -> str:
    """Text of a tokenizer.json of ours; DataError otherwise."""
    fix = "Fix: run the prepare stage, or tools/train_tokenizer.py"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no tokenizer there. {fix}") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}). {fix}") from None
    ours = {"added_tokens", "model"} <= set(content) if isinstance(content, dict) else False
    if not ours or content["model"].get("type") != "BPE":
        raise DataError(f"{path}: not a byte-level BPE of the tokenizers library. {fix}")
    found = {token["id"]: token["content"] for token in content["added_tokens"]}
    wrong = [
        f"{index} is {found.get(index)!r}, not {token!r}"
        for index, token in enumerate(SPECIAL_TOKENS)
        if found.get(index) != token
    ]
    if wrong:
        raise DataError(f"{path}: special tokens differ from ours: {'; '.join(wrong)}. {fix}")
    return text
