"""Files that are the old one or the new one, whenever the process is killed."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes under `<name>.tmp` beside path, then rename. The folder has to be there.

    One process at a time writes a path; what a killed one left is replaced by the next.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
