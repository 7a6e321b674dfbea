"""House rules that no linter knows."""

import ast
import re

# Files at a process edge that may catch Exception (log, abort the group, re-raise or exit), each with its reason.
EDGES: dict[str, str] = {
    "r1train/reward/worker.py": "grades in a worker process; what a verifier raises is counted as a grader error",
    "r1train/reward/code_answer.py": "runs the model's function; what it raises is sent to the test as data",
}
FORBIDDEN_NAMES = ("utils", "util", "common", "misc", "helpers", "helper")
INSTANTIATE = re.compile(r"(?<!\w)_target_(?!\w)")  # Hydra's way to call anything from a YAML file


def product(sources) -> list:
    """r1train/ and tools/; tests may break a rule to show that it is kept."""
    return [source for source in sources if source.path.parts[0] != "tests"]


def getattr_defaults(sources) -> list[str]:
    return [
        f"{source.path}:{node.lineno}"
        for source in product(sources)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if len(node.args) > 2
    ]


def broad_excepts(sources) -> list[str]:
    """`except:`, `except Exception`, `except BaseException`, alone or in a tuple, outside EDGES.

    A handler that ends in a bare `raise` hides nothing (it cleans up), so it may stay.
    """
    found = []
    for source in product(sources):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and str(source.path) not in EDGES:
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
                last = node.body[-1]
                cleans_up = isinstance(last, ast.Raise) and last.exc is None
                if caught & {"Exception", "BaseException"} and not cleans_up:
                    found.append(f"{source.path}:{node.lineno}")
    return found


def non_ascii(sources) -> list[str]:
    return [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), 1)
        if not line.isascii()
    ]


def missing_docstrings(sources) -> list[str]:
    """Modules with code but without a sentence of purpose."""
    return [str(source.path) for source in sources if source.tree.body and not ast.get_docstring(source.tree)]


def test_no_getattr_with_a_default(sources):
    assert getattr_defaults(sources) == []


def test_no_broad_except(sources):
    assert broad_excepts(sources) == []


def test_edges_are_real(sources):
    """An entry that no longer catches anything must go."""
    catching = {
        str(source.path) for source in sources for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler)
    }
    assert set(EDGES) <= catching


def test_ascii_only(sources):
    assert non_ascii(sources) == []


def test_every_module_says_what_it_is_for(sources):
    assert missing_docstrings(sources) == []


def test_no_catch_all_modules(sources):
    assert [str(source.path) for source in sources if source.path.stem in FORBIDDEN_NAMES] == []


def test_no_instantiation_from_yaml(repo, sources):
    yaml = {str(path.relative_to(repo)): path.read_text() for path in sorted((repo / "conf").rglob("*.yaml"))}
    python = {str(source.path): source.text for source in product(sources)}
    assert yaml
    assert [name for name, text in {**yaml, **python}.items() if INSTANTIATE.search(text)] == []
    assert INSTANTIATE.search("_target_: os.system") and not INSTANTIATE.search("test_target_from")


def test_planted_violations_are_found(planted):
    caught = "try:\n    pass\nexcept (ValueError, Exception):\n    pass\ntry:\n    pass\nexcept KeyError:\n    pass\n"
    sources = planted(
        {
            "r1train/a.py": "getattr(x, 'y')\ngetattr(x, 'y', None)\n",
            "r1train/b.py": caught,
            "r1train/c.py": '"""Fine."""\n# caf\u00e9\n',
            "r1train/e.py": '"""Fine."""\ntry:\n    pass\nexcept BaseException:\n    x = 1\n    raise\n',
            "tools/d.py": "try:\n    pass\nexcept:\n    pass\n",
        }
    )
    assert getattr_defaults(sources) == ["r1train/a.py:2"]
    assert broad_excepts(sources) == ["r1train/b.py:3", "tools/d.py:3"]
    assert non_ascii(sources) == ["r1train/c.py:2"]
    assert missing_docstrings(sources) == ["r1train/a.py", "r1train/b.py", "tools/d.py"]
