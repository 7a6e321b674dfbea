"""A Hugging Face chat template (Jinja) -> the texts around a question and behind a response."""

import json
from dataclasses import dataclass

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1train.errors import DataError

# White space on both sides shows whether the template strips what it is given.
_PAD = "\n  "
_QUESTION, _RESPONSE = "r1trainquestion", "r1trainresponse"


@dataclass(frozen=True)
class Turn:
    """before: everything before the first question; after: from there to the response; ending: what follows the
    response. trims: whether the question is stripped.
    """

    before: str
    after: str
    ending: str
    trims: bool


def read_turn(template: str, tokens: dict[str, str]) -> Turn:
    """The turn of one question and one response. tokens: bos_token, eos_token ... as templates name them.

    Raises DataError for a template that fails, depends on the date, changes a question, or lets the assistant's turn
    begin otherwise in a finished chat than where a response is asked for.
    """
    if "strftime_now" in template:
        raise DataError("its chat template writes today's date, so a prompt would change from day to day")
    asked = _render(template, [("user", _QUESTION)], tokens, ask=True)
    whole = _render(template, [("user", _QUESTION), ("assistant", _RESPONSE)], tokens, ask=False)
    before, after, trims = _around(asked, _QUESTION)
    begun, ending, _ = _around(whole, _RESPONSE)
    if begun != asked:
        raise DataError(
            f"its chat template asks for a response with {asked[-60:]!r}, but a finished one follows {begun[-60:]!r}: "
            "what is trained would not be what is sampled"
        )
    return Turn(before, after, ending, trims)


def _render(template: str, chat: list[tuple[str, str]], tokens: dict[str, str], *, ask: bool) -> str:
    """As transformers renders it (apply_chat_template), without tools."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    messages = [{"role": role, "content": f"{_PAD}{text}{_PAD}"} for role, text in chat]
    fields = {"messages": messages, "add_generation_prompt": ask, "tools": None, "documents": None, **tokens}
    try:
        return environment.from_string(template).render(**fields)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise DataError(f"its chat template cannot be used ({error})") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _around(text: str, mark: str) -> tuple[str, str, bool]:
    """What stands before and after the padded mark, or after the bare one where the padding is gone."""
    padded = f"{_PAD}{mark}{_PAD}"
    shown = padded if padded in text else mark
    before, _, after = text.partition(shown)
    if text.count(mark) != 1 or (shown == mark and (before.endswith(_PAD) or after.startswith(_PAD))):
        raise DataError("its chat template does not show every message once, as it was given or stripped")
    return before, after, shown == mark
