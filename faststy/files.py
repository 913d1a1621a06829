"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from faststy.errors import FaststyError, UnwritableError

TEMPORARY = ".faststy-tmp"
FRESH = 10.0  # seconds in which a temporary file is new


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` by rename when the block ends well, and vanishes otherwise.

    Raises FaststyError, with the reason, for a name that cannot be; UnwritableError when the folder
    cannot be written or the disk is full.
    """
    try:
        with scratch(path.parent) as temporary:
            with open(temporary, "r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty file in `folder` that is needed within the block, and vanishes with it.

    It is named before it is there: whatever ends the block, it is known what to remove. That of a
    process which is killed is removed by the next one that writes there.
    """
    _remove_abandoned(folder)
    path = folder / f".{os.urandom(8).hex()}{TEMPORARY}"
    handle = -1
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if not _hold(handle):  # an open file cannot be renamed on Windows
            os.close(handle)
            handle = -1
        yield path
    finally:
        with suppress(OSError):
            path.unlink()
        if handle >= 0:
            os.close(handle)


def _hold(handle: int) -> bool:
    """Hold a file until it is closed or the process ends; False where it is held, or cannot be."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or on a network drive
        return False
    return True


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of `folder` that no process holds; once, as a folder may be large.

    New ones are spared: they may be about to be held.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            if path.is_file() and time.time() > path.stat().st_mtime + FRESH:
                with open(path, "r+b") as file:  # as network drives ask
                    if _hold(file.fileno()):
                        path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` by rename. Raises FaststyError."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` by rename. Raises FaststyError."""
    write_bytes(path, utf8(path, text))


def utf8(path: Path, text: str) -> bytes:
    """The bytes of `text`, for `path`. Raises FaststyError."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # from a file's name in another encoding
        part = text[max(0, error.start - 20) : error.end + 20]
        raise FaststyError(f"{path}: cannot hold {part!r}, which is not Unicode") from error


def target_at(path: str | os.PathLike[str]) -> Path:
    """`path`, absolute and without links, where a file may be written; makes its folder.

    Raises FaststyError for a folder, and for pipes and devices, which are never replaced;
    UnwritableError when the folder cannot be made.
    """
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise FaststyError(f"{os.fspath(path)}: is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise FaststyError(f"{os.fspath(path)}: not a regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise _unwritable(path, error) from error


def _unwritable(path: str | os.PathLike[str], error: Exception) -> FaststyError:
    # Another name would do for these; ValueError: a null byte.
    alone = getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.EINVAL)
    kind = FaststyError if alone or isinstance(error, ValueError) else UnwritableError
    return kind(f"{os.fspath(path)}: cannot be written ({reason_of(error)})")


def reason_of(error: BaseException) -> str:
    """Why the system refused, in its words but without the path."""
    if isinstance(error, FileExistsError):  # the way mkdir says it
        return "a part of the path is a file, not a folder"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def why_closed(folder: Path) -> str | None:
    """Why nothing could be written into `folder`, if those that are missing were made; or None."""
    try:
        folder = folder.resolve()
        for there in (folder, *folder.parents):
            with suppress(FileNotFoundError, NotADirectoryError):
                mode = there.stat().st_mode
                break
        if not stat.S_ISDIR(mode):
            return "a part of the path is a file, not a folder"
        return None if os.access(there, os.W_OK | os.X_OK) else "no permission"
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        return reason_of(error)


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Find out before the work whether `path`, and the folders above it, can be written after it.

    Args:
        inputs: files that must not be overwritten.

    Raises FaststyError for a folder, an input, and a place that cannot be written.
    """
    try:
        if path.is_dir():
            raise FaststyError(f"{path}: is a folder; name a file in it")
        if path.exists() and any(i.exists() and path.samefile(i) for i in inputs):
            raise FaststyError(f"{path}: is an input and will not be overwritten")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason: str | None = reason_of(error)
    else:
        reason = why_closed(path.parent)
    if reason is not None:
        raise FaststyError(f"{path}: cannot be written ({reason})")


def mode_of(path: str | os.PathLike[str]) -> int:
    """What kind of file is there, as `stat` takes it; 0 for none, or one that may not be known.

    (`Path.is_fifo` and the like raise for a name that is too long, and in a folder that is closed.)
    """
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0


def redirected_input() -> tuple[int, int] | None:
    """Device and number of the file that standard input is; None for a pipe, and for none."""
    try:
        status = os.fstat(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or no file in Python's hands
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def without_links(path: Path) -> Path:
    """`path`, absolute and without links; links in a circle stay, where `resolve` may raise."""
    return Path(os.path.realpath(path))


def remove_leftovers(folder: Path) -> None:
    """Remove all temporary files in `folder`, held or not: for who writes there alone."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()
