"""Files and functions stay short enough to be read in one go."""

import ast

FILE_SOFT, FILE_HARD, OVER_SOFT_ALLOWED = 300, 400, 3
FUNCTION_LINES = 60


def long_files(sources, limit: int) -> list[str]:
    lengths = {str(source.path): len(source.text.splitlines()) for source in sources}
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > limit]


def functions(sources):
    """(path, function name, lines) of every function; decorators do not count, nested functions count twice."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield str(source.path), node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def long_functions(sources) -> list[str]:
    return [f"{path}: {name} has {lines} lines" for path, name, lines in functions(sources) if lines > FUNCTION_LINES]


def test_no_file_over_the_hard_limit(sources):
    assert long_files(sources, FILE_HARD) == []


def test_few_files_over_the_soft_limit(sources):
    over = long_files(sources, FILE_SOFT)
    assert len(over) <= OVER_SOFT_ALLOWED, over


def test_functions_are_short(sources):
    assert long_functions(sources) == []


def test_train_step_fits_on_a_page(sources):
    """The one function that everybody reads exists, under its name, once."""
    if not any(source.module.startswith("r1train.train") for source in sources):
        raise AssertionError("r1train/train is missing")
    steps = [(path, lines) for path, name, lines in functions(sources) if name == "train_step" and "r1train" in path]
    assert len(steps) == 1 and steps[0][1] <= FUNCTION_LINES, steps


def test_planted_lengths_are_found(planted):
    body = "\n".join(f"    x = {i}" for i in range(60))
    sources = planted({"r1train/a.py": f"def long():\n{body}\n\n\ndef short():\n    return 1\n" + "\n" * 340})
    assert long_files(sources, FILE_HARD) == ["r1train/a.py: 405 lines"]
    assert long_functions(sources) == ["r1train/a.py: long has 61 lines"]
