"""The tokenizer of a Hugging Face folder: which token does what, and its chat template as a frame of token ids.

Read with the tokenizers library alone: importing transformers takes a second. The ids are those of transformers'
apply_chat_template for a question that spells no special token; one that does stays plain text here.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from r1train.data.chat_template import Turn, read_turn
from r1train.data.roles import TOKENIZER_FILES, ChatFrame, Roles
from r1train.errors import DataError

_, CONFIG_FILE, _NAMES_FILE, _TEMPLATE_FILE = TOKENIZER_FILES
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
# Begin, hole and end of fill-in-the-middle as DeepSeek's models, Qwen's and StarCoder's call them: prefix, suffix and
# middle follow them in this order.
_FIM = (
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
# What a template's frame must leave alone: a question at once, one with white space at its ends, other scripts.
_PROBES = ("What is 3 + 4?", "  12 cats\nand 3.5 dogs\n\n", "\u00e9t\u00e9 \u4f60\u597d")


def hf_roles(folder: Path, plain: tokenizers.Tokenizer, parsing: tokenizers.Tokenizer) -> Roles:
    """Roles of the tokens of folder/tokenizer.json.

    plain and parsing: that file, without and with special tokens read in texts. Raises DataError for a folder whose
    config, template or kind of tokenizer is not one that this program can use, saying why.
    """
    try:
        return _roles(folder, plain, parsing)
    except DataError as error:
        fix = f"a folder with another tokenizer, or another template in its {_TEMPLATE_FILE}"
        raise DataError(f"{folder}: {error}. Fix: {fix}") from None


def _roles(folder: Path, plain: tokenizers.Tokenizer, parsing: tokenizers.Tokenizer) -> Roles:
    if "ByteLevel" not in str(parsing.pre_tokenizer):
        raise DataError("not a byte-level BPE (those of SmolLM, Llama 3, Qwen and DeepSeek are)")
    if "add_prefix_space=True" in str(parsing.pre_tokenizer):
        raise DataError("it puts a space before every text, so texts cannot be encoded in pieces")
    config = _read(folder / CONFIG_FILE)
    tokens = {name: text for name, text in _tokens(_read(folder / _NAMES_FILE) | config).items() if text is not None}
    turn = read_turn(_template(folder, config), tokens)
    ids = {name: parsing.token_to_id(text) for name, text in tokens.items()}
    missing = [f"{name} {tokens[name]!r}" for name, token in ids.items() if token is None]
    if missing:
        raise DataError(f"{', '.join(missing)} is no token of its vocabulary")
    eos = _first_token(parsing, turn.ending)
    document_end = ids.get("eos_token", eos)
    return Roles(
        bos_id=ids.get("bos_token", document_end),
        eos_id=eos,
        pad_id=ids.get("pad_token", document_end),
        document_end_id=document_end,
        chat=_frame(turn, plain, parsing),
        fim_ids=_fim_ids(parsing),
    )


def _fim_ids(parsing: tokenizers.Tokenizer) -> tuple[int, ...] | None:
    added = {token.content: number for number, token in parsing.get_added_tokens_decoder().items()}
    named = next((names for names in _FIM if added.keys() >= set(names)), None)
    return None if named is None else tuple(added[name] for name in named)


def _tokens(config: dict[str, Any]) -> dict[str, str | None]:
    """bos_token ... -> its text; a token may be a mapping with more than its text."""
    found = {name: config.get(name) for name in _NAMED}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template; of several the default one. A file of its own wins, as in transformers."""
    file = folder / _TEMPLATE_FILE
    found = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(found, list):
        found = next((one["template"] for one in found if one["name"] == "default"), None)
    if not isinstance(found, str):
        raise DataError(f"no chat template, neither in {_TEMPLATE_FILE} nor in {CONFIG_FILE}")
    return found


def _first_token(parsing: tokenizers.Tokenizer, ending: str) -> int:
    """The special token that ends the assistant's turn: generation stops there."""
    encoding = parsing.encode(ending, add_special_tokens=False)
    if not encoding.ids or encoding.ids[0] not in parsing.get_added_tokens_decoder():
        raise DataError(f"its chat template ends a response with {ending!r}, which begins with no special token")
    return encoding.ids[0]


def _frame(turn: Turn, plain: tokenizers.Tokenizer, parsing: tokenizers.Tokenizer) -> ChatFrame:
    """Ids up to the last special token before the question and from the first one after it; the rest stays text."""
    added = parsing.get_added_tokens_decoder().keys()
    before = parsing.encode(turn.before, add_special_tokens=False)
    after = parsing.encode(turn.after, add_special_tokens=False)
    last = max((place + 1 for place, token in enumerate(before.ids) if token in added), default=0)
    first = next((place for place, token in enumerate(after.ids) if token in added), len(after.ids))
    frame = ChatFrame(
        before=tuple(before.ids[:last]),
        after=tuple(after.ids[first:]),
        text_before=turn.before[before.offsets[last - 1][1] if last else 0 :],
        text_after=turn.after[: after.offsets[first][0]] if first < len(after.ids) else turn.after,
        trim=turn.trims,
    )
    for probe in _PROBES:
        question = probe.strip() if turn.trims else probe
        whole = parsing.encode(turn.before + question + turn.after, add_special_tokens=False).ids
        parts = plain.encode(frame.joined(probe), add_special_tokens=False).ids
        if whole != [*frame.before, *parts, *frame.after]:
            raise DataError("its tokenizer encodes a question differently beside the special tokens of its template")
    return frame


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path.name} is not a JSON object")
    return content
