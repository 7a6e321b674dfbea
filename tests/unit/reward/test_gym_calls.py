"""Every place where the installed reasoning-gym evaluates text: another version must not bring new ones unseen."""

import ast
from pathlib import Path

import reasoning_gym
from reasoning_gym.factory import DATASETS

from r1train.reward.gym import OWN

EVALUATING = {
    *("eval", "exec", "compile", "__import__", "import_module", "literal_eval", "system", "popen", "Popen", "run"),
    *("parse_expr", "sympify", "nsimplify", "lambdify", "parse_latex", "parse_mathematica", "S"),
    *("loads", "load", "fromstring", "loadtxt", "genfromtxt"),
}
# Calls that see an answer or a field of the problem while scoring; gym.py has verifiers of its own for these modules.
SCORING = {
    "algebra/intermediate_integration.py": 2,
    "algebra/polynomial_multiplication.py": 2,
    "algebra/simple_integration.py": 2,
    "algorithmic/binary_matrix.py": 1,
    "algorithmic/spiral_matrix.py": 1,
    "algorithmic/string_insertion.py": 1,
    "arithmetic/bitwise_arithmetic.py": 2,  # one of them while generating
    "games/countdown.py": 1,
    "games/n_queens.py": 1,
    "games/puzzle24.py": 1,
}
# eval of the reference, behind json.loads; gym.py turns the reference into JSON first.
GUARDED = {"algorithmic/number_sorting.py": 1}
# While problems are made, from the package's own texts.
GENERATING = {
    "arithmetic/basic_arithmetic.py": 1,
    "arithmetic/gsm_symbolic/generators_00_49.py": 1,
    "arithmetic/gsm_symbolic/generators_50_99.py": 1,
    "code/bf.py": 1,  # a compiler of its own, of brainfuck
    "code/codeio.py": 1,
    "logic/propositional_logic.py": 5,  # its own parse_expr, which only cuts text
}
# Readers of data alone: json, and numpy's of lists of lines.
HARMLESS = {"json.loads", "json.load", "np.loadtxt", "yaml.safe_load"}


def calls():
    """module -> the evaluating calls in it, written out."""
    root = Path(reasoning_gym.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in EVALUATING and called not in HARMLESS | {"re.compile"}:
                found.setdefault(name, []).append(called)
    # Its own command-line compiler, which no data set imports.
    return {name: made for name, made in found.items() if not name.startswith("code/contrib/")}


def test_calls_that_evaluate_text_are_the_known_ones():
    assert {name: len(made) for name, made in calls().items()} == SCORING | GUARDED | GENERATING


def test_modules_that_evaluate_answers_have_verifiers_of_our_own():
    modules = {name: dataset.__module__.replace(".", "/") + ".py" for name, (dataset, _) in DATASETS.items()}
    evaluating = {name for name, module in modules.items() if module.removeprefix("reasoning_gym/") in SCORING}
    assert len(evaluating) == len(SCORING) and evaluating <= set(OWN)
