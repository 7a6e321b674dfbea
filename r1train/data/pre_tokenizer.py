"""How a tokenizer that is trained here finds words before it merges bytes within them."""

import tokenizers
from tokenizers import pre_tokenizers

# Digits in groups of three, Chinese characters and kana apart from the rest, then words with one sign or space before
# them, signs together with the line breaks behind them, white space. As in the tokenizer.json of DeepSeek-V3.
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PRE_TOKENIZERS = ("digits", "deepseek_v3")


def pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer:
    """digits: GPT-2's words, and every digit alone, so that numbers have one spelling; deepseek_v3: that model's."""
    if kind == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        parts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in _DEEPSEEK_V3]
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(parts)
