"""Byte-level BPE: training it, and the thin class that the rest of the program encodes and decodes with.

Every byte is in the alphabet, so any text survives a round trip. In a tokenizer that is trained here digits are single
tokens unless data.pre_tokenizer says otherwise: numbers then have one spelling, and arithmetic is learnt digit by
digit. The special tokens come first, ids 0 to 8; those of FIM, where the data ask for it, follow with ids 9 to 11. A
model that comes from elsewhere keeps its own tokenizer (data/hf_tokenizer.py); nothing beyond this file sees a
difference.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1train.data.hf_tokenizer import CONFIG_FILE, hf_roles
from r1train.data.pre_tokenizer import pre_tokenizer as words_of
from r1train.data.roles import ChatFrame, Roles
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


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, fim: bool = False, pre_tokenizer: str = "digits"
) -> tokenizers.Tokenizer:
    """Train on `texts`; the same texts give the same tokenizer. fim: with the three tokens of data/fim.py.

    Raises DataError when vocab_size cannot hold the bytes and special tokens, or the texts have too few merges for it.
    """
    special_tokens = SPECIAL_TOKENS + FIM_TOKENS if fim else SPECIAL_TOKENS
    least = len(special_tokens) + 256
    if vocab_size < least:
        raise DataError(f"vocabulary of {vocab_size}: too small. Fix: at least {least} (256 bytes and special tokens)")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = words_of(pre_tokenizer)
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
    """A tokenizer and the roles of its tokens (data/roles.py), read from its folder.

    vocab_size: one above the largest id. content_hash: sha256 of tokenizer.json.
    """

    def __init__(self, folder: Path):
        """Ours, or a Hugging Face folder's. Raises DataError when it is missing or cannot be used, saying why."""
        text, content = _checked_json(folder)
        # Two copies: in prompts and corpora "<think>" is seven characters, not the special token.
        self._with_special = _plain_encoder(text)
        self._plain = _plain_encoder(text)
        self._plain.encode_special_tokens = True
        ours = not _differences(content)
        self.roles = _own_roles(self._plain) if ours else hf_roles(folder, self._plain, self._with_special)
        self.vocab_size = 1 + max(self._plain.get_vocab().values())
        self.content_hash = hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        return cls(Path(folder))

    @property
    def bos_id(self) -> int:
        return self.roles.bos_id

    @property
    def eos_id(self) -> int:
        return self.roles.eos_id

    @property
    def pad_id(self) -> int:
        return self.roles.pad_id

    @property
    def document_end_id(self) -> int:
        return self.roles.document_end_id

    @property
    def fim_ids(self) -> tuple[int, ...] | None:
        return self.roles.fim_ids

    @property
    def chat(self) -> ChatFrame:
        return self.roles.chat

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


def is_our_tokenizer(folder: Path) -> bool:
    """Whether folder/tokenizer.json is one of train_tokenizer's."""
    try:
        return not _differences(json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _plain_encoder(text: str) -> tokenizers.Tokenizer:
    """Without the truncation and padding that some files ask for."""
    bpe = tokenizers.Tokenizer.from_str(text)
    bpe.no_truncation()
    bpe.no_padding()
    return bpe


def _own_roles(bpe: tokenizers.Tokenizer) -> Roles:
    """Roles of SPECIAL_TOKENS and FIM_TOKENS: number i has id i."""
    bos, eos, pad, user, assistant = range(5)
    fim_ids = tuple(range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(FIM_TOKENS)))
    has_fim = tuple(map(bpe.id_to_token, fim_ids)) == FIM_TOKENS
    return Roles(
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        document_end_id=eos,
        chat=ChatFrame(before=(bos, user), after=(assistant,)),
        fim_ids=fim_ids if has_fim else None,
    )


def _checked_json(folder: Path) -> tuple[str, dict[str, Any]]:
    """A tokenizer.json of ours or of a Hugging Face folder, as text and parsed; DataError otherwise."""
    path = folder / TOKENIZER_FILE
    fix = "Fix: run the prepare stage, or tools/train_tokenizer.py"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no tokenizer there. {fix}") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}). {fix}") from None
    usable = {"added_tokens", "model"} <= set(content) if isinstance(content, dict) else False
    if not usable or content["model"].get("type") != "BPE":
        raise DataError(f"{path}: not a byte-level BPE of the tokenizers library. {fix}")
    wrong = _differences(content)
    if wrong and not (folder / CONFIG_FILE).is_file():
        what = f"special tokens differ from ours ({'; '.join(wrong)}), and no {CONFIG_FILE} says what they are"
        raise DataError(f"{path}: {what}. {fix}")
    return text, content


def _differences(content: dict[str, Any]) -> list[str]:
    """How the special tokens of a parsed tokenizer.json differ from ours."""
    found = {token["id"]: token["content"] for token in content["added_tokens"]}
    return [
        f"{index} is {found.get(index)!r}, not {token!r}"
        for index, token in enumerate(SPECIAL_TOKENS)
        if found.get(index) != token
    ]
