"""The lineage of a schedule's run folders: what each step was made from, its numbers, and why it is stale."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from r1train.config.schema import RunConfig
from r1train.log.manifest import Artifact, Manifest, read_manifest
from r1train.log.result import StageResult, read_result
from r1train.stages.stale import parents_of, stale_steps

SHORT = 10


@dataclass(frozen=True)
class Node:
    """One step. parents: ids of earlier steps that it read from, the one whose weights it took first."""

    step: str
    stage: str
    parents: tuple[str, ...]
    manifest: Manifest | None
    result: StageResult | None
    stale: tuple[str, ...]

    @property
    def state(self) -> str:
        """In a word: not run, begun, done, done (no manifest), stale."""
        if self.stale:
            return "stale"
        if self.result is None:
            return "not run" if self.manifest is None else "begun"
        return "done" if self.manifest is not None else "done (no manifest)"


def lineage(configs: Sequence[RunConfig]) -> list[Node]:
    """Every step in order of the schedule."""
    stale = stale_steps(configs)
    return [
        Node(
            step=cfg.step,
            stage=cfg.stage.name,
            parents=tuple(_weights_first(cfg, [parent.step for parent in parents_of(cfg, configs)])),
            manifest=read_manifest(cfg.run_dir),
            result=read_result(cfg.run_dir),
            stale=tuple(stale.get(cfg.step, ())),
        )
        for cfg in configs
    ]


def print_lineage(nodes: Sequence[Node], console: Console) -> None:
    """A tree: each step below the step whose weights (else: whose files) it took, its other parents in its line."""
    tree = Tree("lineage")
    branches: dict[str, Tree] = {}
    for node in nodes:
        branch = branches[node.parents[0]] if node.parents else tree
        branches[node.step] = branch.add(Text(node_line(node)))
        for why in node.stale:
            branches[node.step].add(Text(f"stale: {why}"))
        for artifact in node.manifest.outputs if node.manifest else ():
            if artifact.kind == "checkpoint":
                branches[node.step].add(Text(artifact_line(artifact)))
    console.print(tree)


def node_line(node: Node) -> str:
    """One step in one line: state, config hash, commit, and what else it read."""
    words = [f"{node.step} ({node.stage}): {node.state}"]
    if node.manifest is not None:
        commit = "no commit" if node.manifest.commit is None else node.manifest.commit[:SHORT]
        words.append(f"config {node.manifest.config_hash[:SHORT]}, commit {commit}{'+' if node.manifest.dirty else ''}")
    if len(node.parents) > 1:
        words.append(f"also from {', '.join(node.parents[1:])}")
    return ", ".join(words)


def artifact_line(artifact: Artifact) -> str:
    """An artifact with the beginning of its digest."""
    return f"{artifact.path} {artifact.digest[:SHORT]}"


def _weights_first(cfg: RunConfig, parents: list[str]) -> list[str]:
    """The step of init_from first, then the latest first: data come from the beginning."""
    start = None if cfg.stage.name == "prepare" else _start(cfg)
    return sorted(reversed(parents), key=lambda step: step != start)


def _start(cfg: RunConfig) -> str | None:
    folder = vars(cfg.stage).get("init_from") or vars(cfg.stage).get("samples_from")
    return None if folder is None else Path(folder).name
