"""The code reward on right and wrong programs, its tests' format, and what it says where it cannot run."""

import pytest

from r1train.config.schema_reward import CodeConfig
from r1train.errors import DataError, EnvironmentProblem
from r1train.reward import code, code_judge
from r1train.reward.code import code_score, extract_code, read_task, same_output
from r1train.reward.isolation import Isolation, choose, compiler, require_isolation
from r1train.reward.jail import probe

isolated = pytest.mark.skipif(probe().backend == "none", reason=f"no isolation on this host: {probe().note}")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no g++")

CFG = CodeConfig()
SUMS = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}, {"stdin": "0 3\n", "stdout": "3\n"}]
CPP = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << %s << std::endl; }"
# MBPP's assert lines and HumanEval's check(candidate), as snippets.
FUNCTION_TESTS = [
    {"snippet": "assert div(6, 3) == 2"},
    {"snippet": "assert div([6], [4.0]) == [1.5]"},
    {
        "snippet": "def check(candidate):\n    assert candidate((1,), (2,)) == [0.5]\n"
        "    try:\n        candidate(1, 0)\n"
        "    except ZeroDivisionError:\n        return\n    assert False\n\ncheck(div)"
    },
]
DIV = """
def div(a, b):
    if isinstance(a, (list, tuple)):
        return [x / y for x, y in zip(a, b)]
    return a / b
"""


def score(answer, tests, language="python", cfg=CFG):
    return code_score(answer, {"metadata": {"tests": tests, "code_language": language}}, cfg)


@isolated
@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("print(sum(map(int, input().split())))", 1.0),
        ("The sum:\n```python\nprint(sum(map(int, input().split())))\nexit()\n```\nDone.", 1.0),
        ("import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.read().split()))) + '  \\n\\n')", 1.0),
        ("print(3)", 0.0),
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", 0.0),
        ("print(sum(map(int, input().split()", 0.0),
        ("", 0.0),
        ("x" * 100_001, 0.0),
    ],
)
def test_python_programs(answer, value):
    assert score(answer, SUMS) == value


@isolated
def test_share_of_passed_tests():
    assert score("print(3)", SUMS, cfg=CodeConfig(partial=True)) == pytest.approx(2 / 3, abs=1e-12)


@isolated
@needs_compiler
@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (CPP % "a + b", 1.0),
        (f"```cpp\n{CPP % 'a + b'}\n```", 1.0),
        (CPP % "3", 0.0),
        (CPP % "a + b\nthis is no C++", 0.0),
        ('#include "/etc/passwd"\n' + CPP % "a + b", 0.0),
        ("#include <cstdlib>\n" + CPP % "3 + *(volatile int*)0", 0.0),
        ("int big[1 << 28] = {1};\n" + CPP % "a + b", 0.0),  # a program of 1 GiB
        ('struct Exit { Exit() { __builtin_printf("3\\n"); __builtin_exit(0); } } now;\n' + CPP % "a + b", 0.0),
    ],
)
def test_cpp_programs(answer, value):
    assert score(answer, SUMS, "cpp") == value


@isolated
def test_functions():
    assert score(DIV, FUNCTION_TESTS) == 1.0
    partial = CodeConfig(partial=True)
    assert score("def div(a, b): return a / b", FUNCTION_TESTS, cfg=partial) == pytest.approx(1 / 3, abs=1e-12)
    assert score("def divide(a, b): return a / b", FUNCTION_TESTS, cfg=partial) == 0.0


@isolated
def test_time_for_all_tests_of_a_sample():
    cfg = CodeConfig(time_s=30.0, total_s=4.0, partial=True)  # the first test ends well before, on a busy host too
    slow = [
        {"stdin": "0.0\n", "stdout": "ok\n"},
        {"stdin": "60\n", "stdout": "ok\n"},
        {"stdin": "0.0\n", "stdout": "ok\n"},
    ]
    answer = "import time\ntime.sleep(float(input()))\nprint('ok')"
    assert score(answer, slow, cfg=cfg) == pytest.approx(1 / 3, abs=1e-12)


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr(code, "compiler", lambda: None)
    monkeypatch.setattr(code, "jail_of", lambda allow_unisolated: None)
    with pytest.raises(EnvironmentProblem, match="this host has no g\\+\\+"):
        score(CPP % "a + b", SUMS, "cpp")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "has no tests"),
        ({"tests": []}, "has no tests"),
        ({"tests": [{"stdin": "1"}]}, r"keys \['stdin'\]"),
        ({"tests": [{"stdin": "1", "stdout": 1}]}, "all text"),
        ({"tests": [{"snippet": "1"}], "code_language": "cpp"}, "a snippet tests Python"),
        ({"tests": SUMS, "code_language": "rust"}, "code_language = 'rust' is not known"),
    ],
)
def test_bad_tests_are_data_errors(metadata, message):
    with pytest.raises(DataError, match=message):
        read_task({"metadata": metadata})


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (b"1\n2", "1\n2\n", True),
        (b"1  \n2\n\n", "1\n2", True),
        (b"1\r\n2", "1\n2", True),
        (b"1 2", "1\n2", False),
        (b" 1", "1", False),
        (b"", "", True),
        (b"\xff", "\ufffe", False),
    ],
)
def test_same_output(given, expected, same):
    assert same_output(given, expected) is same


def test_the_last_fenced_block_is_the_code():
    assert extract_code("```\na\n``` or ```python\nb\n```") == "b\n"
    assert extract_code("a = 1") == "a = 1"


def test_free_names_are_the_functions_of_the_answer():
    source = "import math\nx = f(1)\ndef check(c, *, d):\n  for i in c(x): assert math.sqrt(i) == g(d)\nlen(x)\n"
    assert code_judge.free_names(source) == {"f", "g"}


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -(10**30), 0.1, float("inf"), "a", b"\x00", [1, (2, {3})], {(1, 2): [None]}, frozenset({1}), set()],
)
def test_plain_data_crosses_unchanged(value):
    back = code_judge.decode(code_judge.encode(value))
    assert back == value and type(back) is type(value)


def test_refuses_without_isolation():
    nothing = choose(lambda backend: "not permitted")
    assert nothing.backend == "none" and nothing.note.endswith("name spaces: not permitted")
    with pytest.raises(EnvironmentProblem, match="cannot isolate the code .*not permitted. Fix: install bubblewrap"):
        require_isolation(nothing, allow_unisolated=False)
    require_isolation(nothing, allow_unisolated=True)
    require_isolation(Isolation("namespaces", ""), allow_unisolated=False)


def test_unisolated_where_the_config_allows_it(monkeypatch):
    monkeypatch.setattr("r1train.reward.jail.probe", lambda: Isolation("none", "pretended"))
    code.jail_of.cache_clear()
    try:
        with pytest.raises(EnvironmentProblem, match="pretended"):
            score("print(3)", SUMS)
        cfg = CodeConfig(allow_unisolated=True)
        assert score("print(sum(map(int, input().split())))", SUMS, cfg=cfg) == 1.0
        assert score("print(3)", SUMS, cfg=cfg) == 0.0
        assert score(DIV, FUNCTION_TESTS, cfg=cfg) == 1.0
        assert score("import os, time\nif os.fork() == 0: time.sleep(99)\nprint(3)", SUMS[:1], cfg=cfg) == 1.0
        assert score("while True: pass", SUMS, cfg=CodeConfig(allow_unisolated=True, time_s=1.0)) == 0.0
    finally:
        code.jail_of.cache_clear()
