"""Answers to reasoning-gym tasks: nothing in them is ever run, and right ones score as the package scores them."""

import json
import os
import subprocess
import sys

import pytest
import sympy
from reasoning_gym import create_dataset, get_score_answer_fn

from r1train.errors import DataError
from r1train.reward.accuracy import needs_process, verifier_of, verify
from r1train.reward.expression import NotInGrammar, arithmetic, guarded
from r1train.reward.grader_process import PACKAGE_PARENT
from r1train.reward.gym import OWN

# What its own scorers run would show as an audit event, as a file, or as no output at all.
WALK = r"""
import json, os, sys
from reasoning_gym.factory import DATASETS, create_dataset
from r1train.reward.accuracy import verify
from r1train.reward.gym import REFUSED

FLAG = sys.argv[1]
TOUCH = f"__import__('os').system('touch {FLAG}')"
PAYLOADS = [
    TOUCH,
    f"[{TOUCH}]",
    f"1 + {TOUCH}",
    f"open('{FLAG}', 'w')",
    f"x + ().__class__.__base__.__subclasses__() + C + {TOUCH}",
    f"(lambda: {TOUCH})()",
    "__import__('os').write(3, b'{\"correct\": 1.0}\\n')",
    "__import__('os').kill(__import__('os').getppid(), 0)",
    "9**9**9**9**9",
    "nan",
]
armed, ran = None, []

def hook(event, args):
    if armed and (event in ("exec", "os.system", "subprocess.Popen", "os.kill") or event == "open" and FLAG in args):
        ran.append((armed, event, str(args)[:100]))

sys.addaudithook(hook)
right, walked = [], []
for name in sorted(set(DATASETS) - REFUSED):
    item = create_dataset(name, seed=3, size=1)[0]
    entry = json.loads(json.dumps({**item, "answer": str(item["answer"])}, default=str))
    for payload in PAYLOADS:
        copy = json.loads(json.dumps(entry))
        try:
            verify(name, "1", copy)  # imports what it needs
        except Exception:
            pass
        armed = name
        try:
            if verify(name, payload, copy) == 1.0:
                right.append((name, payload))
        except Exception:
            pass  # a scorer that stumbles is a counted error
        armed = None
    walked.append(name)
print("\n" + json.dumps({"ran": ran, "right": right, "walked": len(walked), "flag": os.path.exists(FLAG)}))
"""


def test_no_data_set_runs_what_an_answer_says(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    command = [sys.executable, "-c", WALK, str(tmp_path / "flag")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["walked"] >= 100
    assert (found["ran"], found["right"], found["flag"]) == ([], [], False)


def items(name, count, **params):
    """Entries as they come out of a prompt file."""
    source = create_dataset(name, seed=11, size=count, **params)
    return [
        json.loads(json.dumps({**source[n], "answer": str(source[n]["answer"])}, default=str)) for n in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("binary_matrix", 200),
        ("bitwise_arithmetic", 300),
        ("coin_flip", 300),
        ("complex_arithmetic", 300),
        ("countdown", 200),
        ("game_of_life_halting", 40),
        ("intermediate_integration", 120),
        ("n_queens", 30),
        ("number_sorting", 300),
        ("polynomial_multiplication", 300),
        ("puzzle24", 40),
        ("simple_integration", 200),
        ("spiral_matrix", 200),
        ("string_insertion", 200),
    ],
)
def test_right_answers_score_as_the_package_scores_them(name, count):
    score = get_score_answer_fn(name)
    for entry in items(name, count):
        assert score(entry["answer"], entry) == 1.0, entry
        # Where sympy found no antiderivative, the package takes the question itself for the answer.
        undone = name == "intermediate_integration" and "Integral(" in entry["answer"]
        assert verify(name, entry["answer"], entry) == (0.0 if undone else 1.0), entry


def test_every_data_set_with_a_verifier_of_our_own_is_compared():
    (mark,) = test_right_answers_score_as_the_package_scores_them.pytestmark
    assert set(OWN) <= {name for name, _ in mark.args[1]}


def entry_of(**fields):
    return {"question": "?", "answer": "-", "metadata": {}, **fields}


@pytest.mark.parametrize(
    ("task", "answer", "entry", "value"),
    [
        ("countdown", "(2 + 3)\n * 4", entry_of(metadata={"numbers": [4, 3, 2], "target": 20}), 1.0),
        ("countdown", "-(2 - 22) / 1 + +0", entry_of(metadata={"numbers": [0, 1, 2, 22], "target": 20}), 1.0),
        ("countdown", "20", entry_of(metadata={"numbers": [4, 3, 2], "target": 20}), 0.0),
        ("countdown", "2 + 3 * 4", entry_of(metadata={"numbers": [4, 3, 2], "target": 20}), 0.0),
        ("countdown", "4 / (2 - 2)", entry_of(metadata={"numbers": [4, 2, 2], "target": 20}), 0.0),
        ("countdown", "5**2 - 5", entry_of(metadata={"numbers": [5, 2, 5], "target": 20}), 0.0),
        ("countdown", "1000000 / 999999", entry_of(metadata={"numbers": [999999, 1000000], "target": 1}), 0.0),
        ("puzzle24", "8 / (3 - 8 / 3)", entry_of(metadata={"numbers": [3, 3, 8, 8]}), 1.0),
        ("puzzle24", "6 * 4 * 1 * 1", entry_of(metadata={"numbers": [3, 3, 8, 8]}), 0.0),  # other numbers
        ("puzzle24", "8 * 3 + 3 / 8", entry_of(metadata={"numbers": [3, 3, 8, 8]}), 0.0),  # 24.375
        ("bitwise_arithmetic", "4660", entry_of(answer="0x1234"), 1.0),
        ("bitwise_arithmetic", "0x1235", entry_of(answer="0x1234"), 0.0),
        ("bitwise_arithmetic", "0x1230 + 4", entry_of(answer="0x1234"), 0.0),
        ("binary_matrix", "[[0, 1]]", entry_of(answer="0 1"), 0.0),
        ("spiral_matrix", " 1 2 3\n", entry_of(answer="1 2 3"), 1.0),
        ("game_of_life_halting", "false", entry_of(answer="False"), 1.0),
        ("game_of_life_halting", "True", entry_of(answer="False"), 0.0),
        ("complex_arithmetic", "nan", entry_of(metadata={"result": [1.0, 2.0]}), 0.0),
        ("complex_arithmetic", "1.0 + 2.0i", entry_of(metadata={"result": [1.0, 2.0]}), 1.0),
        ("coin_flip", "1e999999999", entry_of(answer="0.5"), 0.0),
        ("coin_flip", "1/2", entry_of(answer="0.5"), 1.0),
        ("number_sorting", "['1.0', '2']", entry_of(answer="['1.0', '2.0']", metadata={"direction": "ascending"}), 1.0),
        ("polynomial_multiplication", "2*x**2 + x + x", entry_of(answer="2*x**2 + 2*x"), 1.0),
        ("polynomial_multiplication", "2*x*(x + 1)", entry_of(answer="2*x**2 + 2*x"), 0.0),
        ("polynomial_multiplication", "2*x.real", entry_of(answer="2*x"), 0.0),
        ("polynomial_multiplication", "alpha + 1", entry_of(answer="1 + alpha"), 1.0),
    ],
)
def test_verdicts_of_our_own(task, answer, entry, value):
    assert verify(task, answer, entry) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("x**2/2 + C", 1.0),
        ("0.5*x**2 + K + pi", 1.0),
        ("(x + 1)**2/2 - x", 1.0),
        ("x**2/2 + log(exp(3))", 1.0),
        ("x**2", 0.0),
        ("Integral(x, x)", 0.0),
        ("x**2/2 + C.free_symbols", 0.0),
        ("x**2/2 + __import__('os').getpid()", 0.0),
        ("x**2/2 + exec(1)", 0.0),
        ("x**2/2 + 9**9**9**9", 0.0),
        ("x**2/2 + ((2**200)**200)**200", 0.0),
        ("x**2/2 + " + "(" * 300 + "1" + ")" * 300, 0.0),
        ("-" * 5000 + "x", 0.0),
        ("x^2/2", 0.0),
        ("x**2/2 + 1j", 0.0),
        ("x**2/2 + log(x, 10)", 0.0),
        ("x**2/2 + True", 0.0),
        ("x**2/2 + 1/0", 0.0),
        ("x**2/2 - 1/(x - x)", 0.0),
        ("x**2/2 + log(0)", 0.0),
        ("x**2/2 + 1e999", 0.0),
        ("x**2/2 - 1e999", 0.0),
        ("x**2/2 + sin(1e999)", 0.0),
        ("x**2/2 + 0**(-1)", 0.0),
        ("x**2/2 + tan(pi/2)", 0.0),
        ("x**2/2 + 1e99", 1.0),
    ],
)
def test_antiderivatives(answer, value):
    entry = entry_of(metadata={"integrand": "x", "variable": "x"})
    assert verify("simple_integration", answer, entry) == value


def test_problems_are_not_run_either(tmp_path):
    """A prompt file is data: its fields reach no eval. What cannot be read is an error, not a verdict."""
    flag = tmp_path / "flag"
    code = f"__import__('pathlib').Path('{flag}').touch()"
    assert verify("bitwise_arithmetic", "0x1", entry_of(answer="0x1", metadata={"problem": code})) == 1.0
    sorting = entry_of(answer=code, metadata={"direction": "ascending"})
    for task, entry in (
        ("number_sorting", sorting),
        ("simple_integration", entry_of(metadata={"integrand": code, "variable": "x"})),
        ("polynomial_multiplication", entry_of(answer=code)),
    ):
        with pytest.raises(ValueError):
            verify(task, "[1]", entry)
    assert not flag.exists()


@pytest.mark.parametrize("text", ["", "()", "1 2", "2**3", "7//2", "1.5", "x", "1" * 501, "(" * 400 + ")", "1,2", "+"])
def test_arithmetic_refuses(text):
    with pytest.raises(NotInGrammar):
        arithmetic(text)


def test_a_type_error_while_reading_is_no_expression():
    with pytest.raises(NotInGrammar, match="unsupported operand"):
        guarded(lambda: sympy.Integer(1) ** object())


def test_scorers_that_may_hang_need_a_process():
    hanging = ("coin_flip", "propositional_logic", "rubiks_cube", "rush_hour", "simple_integration")
    assert all(map(needs_process, hanging))
    assert not any(map(needs_process, ("countdown", "puzzle24", "number_sorting")))


def test_a_data_set_without_a_verdict_of_its_own_is_refused():
    with pytest.raises(DataError, match="unknown task 'composite'"):
        verifier_of("composite")
