"""The data folder: which files in it the prepare stage wrote, and how new ones take their places.

Whatever else lies there (general prompts, corpora that a tool tokenised) is the user's: never changed, moved, deleted.
Imports no torch.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r1train.errors import DataError, first_of
from r1train.log.atomic import write_atomically
from r1train.log.manifest import digest_of

MARKER = "_DONE"
# There while files take their places: its list holds what was there and what comes, so that a killed run can go on.
PLACING = "_PLACING"
# Of data of versions whose marker has no list of files.
_PIECES = ("tokenizer", "corpus", "prompts", "cold_start.jsonl")


def finished(folder: Path, fingerprint: str) -> dict | None:
    """Summary of a finished build from the same inputs, or None."""
    content = _read(folder / MARKER)
    if not all((folder / name).exists() for name in content.get("files", _PIECES)):
        return None
    return content["summary"] if content.get("hash") == fingerprint else None


def written_files(folder: Path) -> list[Path]:
    """The files of a finished data folder that prepare wrote; [] where the folder has no list of them."""
    return [folder / name for name in sorted(_read(folder / MARKER).get("files", {}))]


def check_free(folder: Path, names: Iterable[str]) -> None:
    """Raises DataError when a file of a name that prepare is about to write is not one that it wrote and left."""
    own = _own(folder)
    taken = [name for name in names if os.path.lexists(folder / name) and not _is_own(folder, name, own)]
    if taken:
        raise DataError(
            f"{folder} holds files of names that prepare would write, but it did not write them, or they were changed "
            f"since; nothing was changed:{first_of(taken)}\nFix: move them away, or another data.dir"
        )


def place(partial: Path, folder: Path, *, fingerprint: str, summary: dict) -> None:
    """Rename the finished files of `partial` into folder, remove what prepare wrote before; the marker comes last.

    A file that is there with the same content stays, and stays the user's. Raises DataError as check_free does.
    """
    built = {str(path.relative_to(partial)): digest_of(path) for path in sorted(partial.rglob("*")) if path.is_file()}
    own = _own(folder)
    new = {name: [digest] for name, digest in built.items() if name in own or _digest(folder / name) != digest}
    check_free(folder, new)
    folder.mkdir(parents=True, exist_ok=True)
    both = {name: [*own.get(name, []), *new.get(name, [])] for name in (*own, *new)}
    write_atomically(folder / PLACING, json.dumps({"files": both}, indent=1) + "\n")
    (folder / MARKER).unlink(missing_ok=True)
    for name in own:
        if name not in new and _is_own(folder, name, own):
            (folder / name).unlink(missing_ok=True)
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    marker = {"hash": fingerprint, "summary": summary, "files": new}
    write_atomically(folder / MARKER, json.dumps(marker, indent=1) + "\n")
    (folder / PLACING).unlink()


def set_data_aside(folder: Path, target: Path) -> bool:
    """Move what prepare wrote to the same names below `target`, which is not there yet; whether there was anything.

    Data of a version without a list of files move as a whole.
    """
    content, own = _read(folder / MARKER), _own(folder)
    if content and "files" not in content:
        os.rename(folder, target)
        return True
    markers = [name for name in (PLACING, MARKER) if (folder / name).exists()]
    moved = [*(name for name in own if os.path.lexists(folder / name)), *markers]
    for name in moved:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, target / name)
    for left in sorted({parent for name in moved for parent in (folder / name).parents}, reverse=True):
        if left.is_relative_to(folder) and not any(left.iterdir()):
            left.rmdir()
    return bool(moved)


def _own(folder: Path) -> dict[str, list[str]]:
    """Relative name -> digests of what prepare wrote there."""
    own: dict[str, list[str]] = {}
    for marker in (MARKER, PLACING):
        for name, digests in _read(folder / marker).get("files", {}).items():
            own.setdefault(name, []).extend(digests)
    return own


def _is_own(folder: Path, name: str, own: dict[str, list[str]]) -> bool:
    return _digest(folder / name) in own.get(name, [])


def _digest(path: Path) -> str | None:
    return digest_of(path) if path.is_file() and not path.is_symlink() else None


def _read(marker: Path) -> dict[str, Any]:
    """A marker's content, {} where there is none."""
    return json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
