"""What a served model is asked, and how its replies are read: correctness, which of two is better, rewriting."""

import json
import re

from r1train.reward.format import extract_answer, format_score

VERDICTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}
_VERDICT = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


def correctness_question(question: str, reference: str, answer: str) -> str:
    """Is this answer right, given the reference? Two classes and an analysis, as JSON (R1 supplementary 2.3.3)."""
    return (
        "You grade the answer to a question by comparing it with a reference answer. Only the final result counts, not "
        "the wording. Reply with one JSON object and nothing else: "
        '{"analysis": "<one or two sentences>", "verdict": "correct" or "incorrect"}.\n\n'
        f"Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n"
    )


def read_correctness(reply: str) -> bool | None:
    """The verdict of a reply to correctness_question; None where there is none."""
    found = _OBJECT.search(reply)
    if found is None:
        return None
    try:
        verdict = json.loads(found.group())["verdict"]
    except (ValueError, LookupError, TypeError):
        return None
    return {"correct": True, "incorrect": False}.get(verdict) if isinstance(verdict, str) else None


def comparison_question(question: str, first: str, second: str) -> str:
    """Which of two responses is better, in five steps (R1 section 2.2.2; the scale of Arena-Hard)."""
    scale = "[[A>>B]] much better, [[A>B]] better, [[A=B]] equal, [[B>A]] B better, [[B>>A]] B much better"
    return (
        "You compare two responses to the same request. Judge how useful and relevant each is to the person who asked; "
        "their order means nothing, and longer is not better. Think briefly, then end with exactly one verdict: "
        f"{scale}.\n\nRequest:\n{question}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n"
    )


def read_comparison(reply: str) -> int | None:
    """2 where A is much better ... -2 where B is; None without a verdict. Several verdicts count as none."""
    found = set(_VERDICT.findall(reply))
    return VERDICTS[found.pop()] if len(found) == 1 else None


def rewriting_question(question: str, response: str) -> str:
    """The same reasoning, readable, in the language of the question (R1 supplementary 2.3.2)."""
    return (
        "Rewrite the response below so that a person can follow it: the language of the question, first person, short "
        "paragraphs, no repetition. Keep every step of the reasoning and the final answer as they are; add no new "
        "claims. Keep exactly this layout: <think>reasoning</think><answer>final answer</answer>. "
        f"Reply with the rewritten response only.\n\nQuestion:\n{question}\n\nResponse:\n{response}\n"
    )


def read_rewriting(reply: str, *, answer: str | None) -> str | None:
    """The rewritten response; None where it has lost the layout or changed the answer."""
    text = reply.strip()
    return text if format_score(text) == 1.0 and extract_answer(text) == answer else None
