"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from faststy.errors import FaststyError

TEMPORARY = ".faststy-tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` by rename when the block ends well, and vanishes otherwise.

    Raises FaststyError, with the reason, when the folder cannot be written or the disk is full.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise FaststyError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` by rename. Raises FaststyError."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` by rename. Raises FaststyError."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # from a file's name in another encoding
        part = text[max(0, error.start - 20) : error.end + 20]
        raise FaststyError(f"{path}: cannot hold {part!r}, which is not Unicode") from error
    write_bytes(path, data)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()
