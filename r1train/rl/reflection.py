"""Words with which a chain of thought turns back on itself: the curve behind R1-Zero's "aha moment"."""

import re
from collections import Counter

# The words that the authors of DeepSeek-R1 counted over the training of R1-Zero (arXiv 2501.12948v2, appendix).
REFLECTION_WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
_ANY = re.compile(rf"\b({'|'.join(REFLECTION_WORDS)})\b", re.IGNORECASE)


def reflection_counts(text: str) -> Counter[str]:
    """How often each word stands in the text, as a whole word, in any case."""
    return Counter(word.lower() for word in _ANY.findall(text))
