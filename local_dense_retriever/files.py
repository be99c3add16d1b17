"""Files that survive a kill at any moment: unfinished ones, their locks, and notes that are replaced as a whole."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

BLOCK_BYTES = 1 << 20


def beside(path: Path, ending: str) -> Path:
    """The file whose name has this ending in addition."""
    return path.with_name(path.name + ending)


def partial(path: Path) -> Path:
    """The name of a file until it is complete."""
    return beside(path, ".partial")


def lock(file: IO[Any], path: Path) -> bool:
    """Locks a file, opened at `path`; False if another process holds it or has renamed it since."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the process, however it ends
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def sync(file: IO[Any]) -> None:
    """Waits until everything written to the file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes a note. A kill leaves the old one or the new one, never a part."""
    temporary = beside(path, ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        sync(file)
    os.replace(temporary, path)


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file; fewer if it ends before."""
    while size > 0 and (block := file.read(min(BLOCK_BYTES, size))):
        size -= len(block)
        yield block
