"""manifest.json of a run folder: what a stage was made from, and what it made, with digests.

Begun when the stage starts, completed just before result.json. docs/lineage.md says what a digest sees and what not.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import MARKER

FILE_NAME = "manifest.json"
# It holds a random id and the folder's path, so two saves of the same weights differ in it.
TORCH_METADATA = ".metadata"
# A file up to this size is hashed whole; of a larger one, SAMPLES blocks spread evenly, the ends among them.
WHOLE_BYTES = 64 << 20
SAMPLES = 16
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or a checkpoint that a stage read or wrote.

    name: what it is to the stage (a config key, or a word); kind: file or checkpoint; path: relative to the schedule's
    root where it lies below it; digest: of its content (digest_of).
    """

    name: str
    kind: str
    path: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """config: the resolved config; config_hash: of what decides the result in it. inputs, outputs: artifacts.

    commit, dirty, versions: what ran last. numbers: the stage's result without wall-clock times, None while unfinished.
    """

    step: str
    stage: str
    config_hash: str
    config: dict[str, Any]
    inputs: tuple[Artifact, ...]
    commit: str | None
    dirty: bool | None
    versions: dict[str, str | None]
    outputs: tuple[Artifact, ...] = ()
    numbers: dict[str, Any] | None = None


@dataclass
class Digests:
    """Digests of paths below and outside of root, each read once."""

    root: Path
    _known: dict[Path, str | None] = field(default_factory=dict)

    def of(self, path: Path) -> str | None:
        """Digest of a file or a finished checkpoint; None where there is none."""
        if path not in self._known:
            self._known[path] = digest_of(path)
        return self._known[path]

    def place(self, artifact: Artifact) -> Path:
        """Where the artifact lies."""
        return self.root / artifact.path

    def artifact(self, name: str, path: Path) -> Artifact | None:
        """The artifact as it is now; None where there is none."""
        digest = self.of(path)
        if digest is None:
            return None
        kind = "checkpoint" if path.is_dir() else "file"
        return Artifact(name=name, kind=kind, path=self.relative(path), digest=digest)

    def relative(self, path: Path) -> str:
        """The path below root, so that a root can be moved; others as absolute paths."""
        absolute, root = path.absolute(), self.root.absolute()
        return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def digest_of(path: Path) -> str | None:
    """Digest of a file's content, or of a finished checkpoint's files; None for anything that is not there.

    A checkpoint counts by its files' names, sizes and sampled content: weights trained again differ everywhere,
    so samples see it; a single changed byte may go unseen. Equal weights give equal digests, whoever saved them where.
    """
    if path.is_file():
        return _file_digest(path, whole=WHOLE_BYTES)
    if not (path / MARKER).is_file():
        return None
    digest = hashlib.sha256()
    for file in sorted(part for part in path.rglob("*") if part.is_file()):
        name = str(file.relative_to(path))
        content = "" if name == TORCH_METADATA else f"{file.stat().st_size} {_file_digest(file, whole=BLOCK_BYTES)}"
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path, *, whole: int) -> str:
    """sha256 of the content; above `whole` bytes of the size and of SAMPLES blocks of BLOCK_BYTES / SAMPLES or more."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= whole:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            return digest.hexdigest()
        length = min(BLOCK_BYTES, max(whole // SAMPLES, 1))
        digest.update(str(size).encode())
        for sample in range(SAMPLES):
            file.seek(sample * (size - length) // (SAMPLES - 1))
            digest.update(file.read(length))
    return digest.hexdigest()


def hash_of(tree: object) -> str:
    """sha256 of a JSON-ready tree, keys sorted."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def finish(manifest: Manifest, outputs: tuple[Artifact, ...], numbers: dict[str, Any]) -> Manifest:
    """The manifest of a stage that is done."""
    return replace(manifest, outputs=outputs, numbers=numbers)


def write_manifest(run_dir: Path, manifest: Manifest) -> Path:
    """Writes <run_dir>/manifest.json atomically."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE_NAME
    write_atomically(path, json.dumps(asdict(manifest), indent=1) + "\n")
    return path


def read_manifest(run_dir: Path) -> Manifest | None:
    """The manifest of a stage that began, None where there is none (runs of older versions)."""
    path = run_dir / FILE_NAME
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    artifacts = {name: tuple(Artifact(**item) for item in row[name]) for name in ("inputs", "outputs")}
    return Manifest(**{**row, **artifacts})
