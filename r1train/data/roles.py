"""What a vocabulary's tokens are for, and how it frames a chat: the same record for our tokenizer and any other."""

from dataclasses import dataclass

# Of a tokenizer's folder, what decides ids; of our own the first is the only one.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class ChatFrame:
    """What stands around a question: ids before and after it, and between them and it text that is encoded with it.

    trim: the question's white space at both ends is left out (templates with `content | trim`).
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    text_before: str = ""
    text_after: str = ""
    trim: bool = False

    def joined(self, question: str) -> str:
        """The text that is encoded as one: the question and what it touches."""
        return f"{self.text_before}{question.strip() if self.trim else question}{self.text_after}"


@dataclass(frozen=True, kw_only=True)
class Roles:
    """bos_id: a token that texts begin with; eos_id: ends a response, so generation stops there; document_end_id: ends
    a document of a corpus; pad_id: fills up rows. fim_ids: begin, hole and end of fill-in-the-middle, None without.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    document_end_id: int
    chat: ChatFrame
    fim_ids: tuple[int, ...] | None = None
