"""Packages import one way only, nothing runs in circles, and what a login node needs never imports torch."""

import ast
import subprocess
import sys
from itertools import pairwise

LAYERS = [
    *("errors", "log", "config", "plan", "dist", "model", "data", "convert", "train"),
    *("rollout", "reward", "rl", "eval", "stages", "report", "schedule", "__main__"),
]
LIGHT = ("errors", "log", "config", "plan")  # run on a login node, where neither torch nor megatron may be installed
HEAVY = ("torch", "megatron", "transformers", "transformer_engine", "vllm")


def imported(source) -> set[str]:
    """Every module or name that a file imports anywhere, lazy imports and import_module("...") included."""
    names: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def ours(sources) -> list:
    return [source for source in sources if source.path.parts[0] == "r1train"]


def layer(module: str) -> str:
    """r1train.model.build -> model; r1train -> ''."""
    return (module.split(".") + [""])[1]


def upward_imports(sources) -> list[str]:
    found = []
    for source in ours(sources):
        here = layer(source.module)
        for name in sorted(imported(source)):
            there = layer(name) if name.split(".")[0] == "r1train" else ""
            if here and there in LAYERS and LAYERS.index(there) > LAYERS.index(here):
                found.append(f"{source.path} imports {name}, which comes later")
    return found


def heavy_imports(sources) -> list[str]:
    return [
        f"{source.path} imports {name}"
        for source in ours(sources)
        if layer(source.module) in ("errors", "config", "plan")
        for name in sorted(imported(source))
        if name.split(".")[0] in HEAVY
    ]


def relative_imports(sources) -> list[str]:
    return [
        f"{source.path}:{node.lineno}"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def cycles(sources) -> list[str]:
    """One line per import cycle among r1train's modules, lazy imports included."""
    modules = {source.module: source for source in ours(sources)}
    graph: dict[str, list[str]] = {}
    for name, source in modules.items():
        targets = {c for found in imported(source) for c in (found, found.rpartition(".")[0])}
        graph[name] = sorted((targets & set(modules)) - {name})
    found, done = [], set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def test_every_package_has_a_layer(sources):
    unknown = {layer(source.module) for source in ours(sources)} - {"", *LAYERS}
    assert not unknown, f"packages without a place in LAYERS: {sorted(unknown)}"


def test_imports_go_one_way(sources):
    assert upward_imports(sources) == []


def test_config_and_plan_never_import_torch(sources):
    assert heavy_imports(sources) == []


def test_no_relative_imports(sources):
    assert relative_imports(sources) == []


def test_no_cycles(sources):
    assert cycles(sources) == []


def test_light_packages_load_without_torch(sources):
    """Also through third parties: import them all in a fresh interpreter and look at what came along."""
    names = [s.module for s in ours(sources) if layer(s.module) in LIGHT]
    code = f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\n"
    code += f"print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_planted_violations_are_found(planted):
    sources = planted(
        {
            "r1train/__init__.py": "",
            "r1train/log/up.py": "def f():\n    from r1train.train import loop\n",
            "r1train/data/by_name.py": "import importlib\nimportlib.import_module('r1train.rl.loss')\n",
            "r1train/config/heavy.py": "def f():\n    import torch.nn\n",
            "r1train/rl/a.py": "from r1train.rl import b\n",
            "r1train/rl/b.py": "def f():\n    from r1train.rl.a import x\n",
            "r1train/rl/c.py": "from . import a\nimport r1train.model\n",
            "r1train/train/loop.py": "import torch\nfrom r1train.log import up\n",
        }
    )
    assert upward_imports(sources) == [
        "r1train/data/by_name.py imports r1train.rl.loss, which comes later",
        "r1train/log/up.py imports r1train.train.loop, which comes later",
    ]
    assert heavy_imports(sources) == ["r1train/config/heavy.py imports torch.nn"]
    assert relative_imports(sources) == ["r1train/rl/c.py:1"]
    assert cycles(sources) == [
        "r1train.log.up -> r1train.train.loop -> r1train.log.up",
        "r1train.rl.a -> r1train.rl.b -> r1train.rl.a",
    ]


def test_layers_are_those_of_the_design():
    assert len(LAYERS) == 17 == len(set(LAYERS))
    order = ("errors", "config", "model", "train", "rollout", "rl", "stages", "schedule", "__main__")
    assert all(LAYERS.index(a) < LAYERS.index(b) for a, b in pairwise(order))
