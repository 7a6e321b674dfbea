"""Runs one test snippet in a sandbox of its own; what it calls runs in another (code_answer.py). Started by code.py.

python -I -S code_judge.py: snippet in test.py beside it; whose its names are, in names.json (names_of). For a function
of the answer, a call sends its name and arguments through stdout and takes the result from stdin, as plain data. So
nothing that the answer does in its process (patching, exiting, an __eq__ that always agrees, printing) reaches the
comparison. The verdict, the word pass on stderr, comes from this process alone.
"""

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

MAX_REPLY_CHARS = 16_000_000
# Modules whose names `from m import *` makes, those that tests use. To know the names is to import the module, and
# some standard ones do things when they are imported (antigravity opens a browser).
STARRED = frozenset(
    {"array", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq"}
) | {"itertools", "json", "math", "operator", "os", "random", "re", "statistics", "string", "sys", "time", "typing"}


class Names(NamedTuple):
    """What a snippet does not make itself. functions: of the answer; modules: standard ones that it does not
    import; unknown: anything else, as constants of the answer, which nothing can stand for.
    """

    functions: tuple[str, ...]
    modules: tuple[str, ...]
    unknown: tuple[str, ...]


def names_of(source: str, entry_point: str | None = None) -> Names:
    """Whose the names of a snippet are. Raises SyntaxError for what is no Python.

    Functions of the answer: the entry point, free names that are called or handed to a function that is not the
    answer's (check(f), map(f, x)), and, without any of these, the only built-in name that is called under an assert
    (assert sum(10, 15) == 6): where the answer has a function of such a name, it is the one that is tested.
    """
    nodes = list(ast.walk(ast.parse(source)))
    made, free = _made(nodes), free_names(source)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    functions = free & called
    if entry_point is not None and entry_point not in made:
        functions |= {entry_point} & {node.id for node in nodes if isinstance(node, ast.Name)}
    for node in calls:
        if not (isinstance(node.func, ast.Name) and node.func.id in functions):
            handed = [*node.args, *(keyword.value for keyword in node.keywords)]
            functions |= {value.id for value in handed if isinstance(value, ast.Name)} & free
    if not functions:
        asserts = [inner for node in nodes if isinstance(node, ast.Assert) for inner in ast.walk(node)]
        tested = {node.func.id for node in asserts if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        functions = tested - made if len(tested - made) == 1 else set()
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = (free & bases & set(sys.stdlib_module_names)) - functions
    return Names(*(tuple(sorted(names)) for names in (functions, modules, free - functions - modules)))


def free_names(source: str) -> set[str]:
    """Names that the snippet reads and neither makes itself nor finds among the built-in ones."""
    nodes = list(ast.walk(ast.parse(source)))
    return {node.id for node in nodes if isinstance(node, ast.Name)} - _made(nodes) - set(vars(builtins)) - {"__name__"}


def _made(nodes: Sequence[ast.AST]) -> set[str]:
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                made |= _starred(node)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            made.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            made.add(node.rest)
    return made


def _starred(node: ast.ImportFrom) -> set[str]:
    """The names that `from m import *` makes; none where m is not one of STARRED."""
    if node.level or node.module not in STARRED:
        return set()
    names = vars(importlib.import_module(node.module))
    return set(names.get("__all__", [name for name in names if not name.startswith("_")]))


def encode(value: Any) -> Any:
    """Plain data -> JSON that keeps the type. Raises TypeError for anything else."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot leave its process; plain data can")


def decode(value: Any) -> Any:
    """Inverse of encode."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, content))


def remote(name: str, requests: TextIO, replies: TextIO) -> Callable[..., Any]:
    """A function that runs in the answer's process. What it raised is raised here, if it is a built-in Exception."""

    def call(*args: Any, **kwargs: Any) -> Any:
        request = {"name": name, "args": encode(args), "kwargs": encode(kwargs)}
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        line = replies.readline(MAX_REPLY_CHARS)
        if not line.endswith("\n"):
            raise RuntimeError("the answer's process ended, or replied without end")
        reply = json.loads(line)
        if "raised" not in reply:
            return decode(reply["value"])
        kind = vars(builtins).get(reply["raised"])
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise kind("raised by the answer")
        raise RuntimeError("raised by the answer")

    return call


def judge(source: str, names: dict[str, list[str]], requests: TextIO, replies: TextIO) -> None:
    """Runs the snippet; raises what it raises. names: functions and modules, as in Names."""
    around: dict[str, Any] = {name: importlib.import_module(name) for name in names["modules"]}
    around |= {name: remote(name, requests, replies) for name in names["functions"]}
    exec(compile(source, "test.py", "exec"), {"__name__": "test", **around})


def main() -> None:
    sys.set_int_max_str_digits(0)
    requests, verdict = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with open("test.py", encoding="utf-8") as file, open("names.json", encoding="utf-8") as names:
        judge(file.read(), json.load(names), requests, sys.stdin)
    verdict.write("pass")  # whatever was raised, SystemExit included, does not come this far
    verdict.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
