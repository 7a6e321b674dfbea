"""Long documents are encoded in pieces that bound a worker's memory and change no token."""

import random
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from r1train.data import encode
from r1train.data.pre_tokenizer import pre_tokenizer
from r1train.data.tokenizer import save_tokenizer

# The pattern of GPT-4 and Llama 3; GPT-2's stands in the library.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def of_patterns(*patterns: str) -> pre_tokenizers.PreTokenizer:
    parts = [pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITTERS = {
    "digits": pre_tokenizer("digits"),
    "deepseek_v3": pre_tokenizer("deepseek_v3"),
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt4": of_patterns(GPT4),
}
ALPHABET = "ab Z09\n\n\r\t  .,'s(_\u00e9\u0939\u094d\u6570\u5f0f\u3002\u00b2\u2167 \u00a0"


def words(splitter: pre_tokenizers.PreTokenizer, texts: list[str]) -> list[str]:
    return [word for text in texts for word, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", SPLITTERS)
def test_pieces_have_the_words_of_the_whole(kind, monkeypatch):
    """400 texts of letters, digits, marks, signs and white space in every order, cut as often as can be."""
    monkeypatch.setattr(encode, "_PIECE_CHARACTERS", 1)
    draw, cuts = random.Random(3), 0
    for _ in range(400):
        text = "".join(draw.choices(ALPHABET, k=60))
        pieces = encode._pieces(text)
        assert "".join(pieces) == text
        assert words(SPLITTERS[kind], pieces) == words(SPLITTERS[kind], [text]), pieces
        cuts += len(pieces) - 1
    assert cuts > 800


@pytest.mark.parametrize(
    ("line", "longest"),
    [
        ("x_{0} = {0} * f(y)\n", None),
        ("{0}\n", 1100),
        ("a = b{0};\nend\n", 1100),
        ("\u7b2c {0} \u7ae0\n", 1100),
        ("\u6b64\u4e43\u5176{0},\u5982\u662f\u4e5f\u3002", 1100),
    ],
)
def test_programs_and_tables_are_cut_at_their_lines(line, longest, monkeypatch):
    """Also without a space between two words. Lines that end in a sign, alone, give no place to cut."""
    monkeypatch.setattr(encode, "_PIECE_CHARACTERS", 1000)
    text = "".join(line.format(n) for n in range(3000))
    pieces = encode._pieces(text)
    assert max(map(len, pieces)) <= (longest or len(text))
    assert (len(pieces) == 1) == (longest is None)


def test_a_large_document_takes_the_memory_of_its_pieces(small_tokenizer, tmp_path):
    """4 MB of numbers, one a line: 560 MB encoded at once, 210 a few pieces at a time; in a process of its own."""
    save_tokenizer(small_tokenizer._plain, tmp_path)
    program = f"""
import re
from r1train.data.encode import encode_documents
from r1train.data.tokenizer import Tokenizer
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
tokenizer = Tokenizer.load({str(tmp_path)!r})
before = peak()
(found,) = encode_documents(["0.1234567\\n" * 400_000], tokenizer)
print(len(found), peak() - before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    tokens, grown = done.stdout.split()
    assert int(tokens) > 400_000
    assert float(grown) < 300
