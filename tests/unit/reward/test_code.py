"""The code reward on right and wrong programs, its tests' format, and what it says where it cannot run."""

import pytest

from r1train.config.schema_reward import CodeConfig
from r1train.errors import DataError, EnvironmentProblem
from r1train.reward import code, code_judge, jail_job
from r1train.reward.code import code_score, extract_code, read_task, same_output
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.isolation import Isolation, Views, choose, compiler, require_isolation
from r1train.reward.jail import probe
from r1train.reward.jail_job import Job, Limits

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


@pytest.mark.parametrize(
    ("answer", "code_of"),
    [
        ("```python \nprint(1)\n```", "print(1)\n"),
        ("```python\r\nif a:\r\n    b()\r\n```\r\n", "if a:\n    b()\n"),
        ("1. So:\n   ```python\n   if a:\n       b()\n\n   c()\n   ```\n", "if a:\n    b()\n\nc()\n"),
        ("```\n    return 1\n```", "    return 1\n"),  # a bare body keeps its own
    ],
)
def test_fences_with_spaces_and_carriage_returns(answer, code_of):
    assert extract_code(answer) == code_of


def test_the_last_fenced_block_is_the_code():
    assert extract_code("```\na\n``` or ```python\nb\n```") == "b\n"
    assert extract_code("a = 1") == "a = 1"


def test_free_names_are_the_functions_of_the_answer():
    source = "import math\nx = f(1)\ndef check(c, *, d):\n  for i in c(x): assert math.sqrt(i) == g(d)\nlen(x)\n"
    assert code_judge.free_names(source) == {"f", "g"}


@pytest.mark.parametrize(
    ("snippet", "entry_point", "functions", "modules"),
    [
        ("assert sum(10, 15) == 6", None, ["sum"], []),
        ("assert sum(10, 15) == 6", "sum", ["sum"], []),
        ("assert set(f(3)) == {1}", None, ["f"], []),
        ("assert abs(area(2) - 4 * math.pi) < 1e-6", None, ["area"], ["math"]),
        ("import math\nassert area(2) == math.pi", None, ["area"], []),
        ("def check(candidate):\n assert candidate(1) == help(2)\ncheck(max)", "max", ["max"], []),
        ("def check(candidate):\n assert candidate(encode(1)) == 2\ncheck(div)", None, ["div", "encode"], []),
        ("assert list(map(f, [1])) == [2]", None, ["f"], []),
        ("assert sorted([1], key=f) == [1]", None, ["f"], []),
        ("if __name__ == 'test':\n assert f(1)", None, ["f"], []),
        ("match f(1):\n case [int() as n, *more]: assert n < 2 and more\n case n: assert n", None, ["f"], []),
        ("match f(1):\n case {'a': 1, **others}: assert others == {}", None, ["f"], []),
        ("from math import *\nassert isclose(f(1), pi)", None, ["f"], []),
        ("from collections import *\nassert Counter(f(1)) == deque", None, ["f"], []),
    ],
)
def test_whose_the_names_of_a_snippet_are(snippet, entry_point, functions, modules):
    found = code_judge.names_of(snippet, entry_point)
    assert (list(found.functions), list(found.modules), found.unknown) == (functions, modules, ())


@isolated
def test_functions_named_like_built_in_ones_modules_and_the_entry_point():
    answer = "import math\ndef sum(a, b): return 6 if 10 <= a + b <= 25 else a + b\ndef area(r): return math.pi * r * r"
    assert score(answer, [{"snippet": "assert sum(10, 15) == 6"}]) == 1.0
    assert score(answer.replace("sum", "total"), [{"snippet": "assert sum(10, 15) == 6"}]) == 0.0
    assert score(answer, [{"snippet": "assert abs(area(2) - 4 * math.pi) < 1e-9"}]) == 1.0
    assert score(answer, [{"snippet": "from math import *\nassert isclose(area(2), 4 * pi)"}]) == 1.0
    assert score(answer, [{"snippet": "match area(0):\n case other: assert other == 0.0"}]) == 1.0
    check = [{"snippet": "def check(candidate):\n assert candidate(10, 15) == 6\ncheck(sum)"}]
    assert code_score(answer, {"metadata": {"tests": check, "entry_point": "sum"}}, CFG) == 1.0


@pytest.mark.parametrize(
    ("snippet", "entry_point", "message"),
    [
        ("assert 1 == 1", None, "calls no function that must be the answer's"),
        ("assert len(sum(1, 2)) == 1", None, "calls no function that must be the answer's"),  # which of the two?
        ("x = 3", "f", "calls no function that must be the answer's"),
        ("assert f(1) == LIMIT", None, "uses LIMIT, which it neither makes, imports nor calls"),
        ("assert f(1) == zen\nfrom this import *", None, "uses zen, which it neither makes"),  # importing it prints
        ("from .math import *\nassert f(1) == pi", None, "uses pi, which it neither makes"),
        ("assert f(1) ==", None, "is no Python"),
        ("assert f(" + "-" * 100_000 + "1)", None, "is no Python"),
        ("assert f(1)", 3, "entry_point = 3 is no name"),
    ],
)
def test_snippets_that_no_answer_could_pass_are_refused(snippet, entry_point, message):
    with pytest.raises(DataError, match=message):
        read_task({"metadata": {"tests": [{"snippet": snippet}], "entry_point": entry_point}})


@isolated
@pytest.mark.parametrize("gib", [5, 8])
def test_more_memory_than_the_grader_itself_may_use(gib):
    """The limit of the grader's own process must not be that of the programs it starts."""
    cfg = vars(CodeConfig(memory_bytes=gib * 2**30))
    entry = {"question": "", "answer": "", "metadata": {"tests": SUMS[:1]}, "code": cfg}
    with Grader(processes=1, timeout_s=5.0) as grader:
        grades = grader.grade([GradeItem("code", text, entry, limit_s=60.0) for text in ("print(3)", "print(4)")])
    assert grades == [Grade(1.0, None), Grade(0.0, None)]


def test_less_memory_than_asked_for_is_said(monkeypatch):
    monkeypatch.setattr(jail_job.resource, "getrlimit", lambda _: (2**30, 2**31))
    limits = Limits(cpu_s=1.0, wall_s=1.0, memory_bytes=2**32, scratch_bytes=1, output_bytes=1, processes=1)
    with pytest.raises(EnvironmentProblem, match=r"may use 2147483648 bytes .* cannot get 4294967296"):
        jail_job.files_to_hand_over(Job(("/x",), limits, Views((), {})), backend="namespaces", base="/proc")


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
