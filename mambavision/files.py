"""Files that are written whole or not at all: under a hidden name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mambavision.words import reason


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, see `replacing`; text as UTF-8.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, unique: bool = True, sync: bool = True) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `path` at the end of the block.

    Whoever is killed or fails before leaves the old file as it was. The new one has the rights of any file that the
    process makes (its umask), whatever those of the old one were.

    Args:
        path: of the file. What is there and cannot be replaced, such as /dev/stdout, is written in place.
        unique: the file to write has a name of its own, so that several processes may write at once. Without, it has
            the same name each time, so that whoever is killed again and again leaves no more than one behind.
        sync: wait until it is on the disk before it is renamed, so that a loss of power leaves no half of it either.

    Raises:
        OSError: it cannot be renamed; nothing is left of it.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        yield path
        return
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new" if unique else f".{path.name}.new")
    try:
        yield scratch
        if sync:
            with open(scratch, "r+b") as file:
                os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `path`, which is removed at the end of the block with what is left in it.

    Moving something out of it to `path` is one step of the file system.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as name:
        yield Path(name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one that says ``PATH: cannot be written (REASON)``, with the same errno."""
    try:
        yield
    except OSError as error:
        failed = OSError(f"{path}: cannot be written ({reason(error)})")
        failed.errno = error.errno
        raise failed from error
