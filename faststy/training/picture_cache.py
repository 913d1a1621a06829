"""Decoded pictures: in memory while there is room, then in a folder of memory-mapped files.

A file of the folder is one picture, scaled down: a header and its pixels. It is named after the
original's bytes, so that runs can share a folder, copies of a picture share a file, and a changed
picture gets a new one. A second name, a link, stands for the original's path, size and time, so
that a picture that is known is not read again. Files appear by rename: processes need no lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.pictures import read_picture

MEMORY = 1 << 30  # bytes of decoded pictures kept in memory, of all sources together
RESERVE = 1 << 30  # bytes left free on the disk: a checkpoint matters more than a picture
LEFT = 3600.0  # seconds after which a file that is not whole is of a process that was killed
SMALLEST = 16  # px: there is nothing to learn from less, and the encoder needs 8
HEADER = struct.Struct("<8sIII")  # magic, height, width, CRC-32 of the pixels
MAGIC = b"faststy3"
PLACE = "[0-9a-f]" * 30  # the name of a file; its first two digits are its folder's


def load_tensor(path: Path, short_side: int | None, data: bytes | None = None) -> Tensor:
    """A picture as uint8 [3, H, W], sRGB, on white, scaled down (never up) to `short_side`.

    `data` are the bytes of the file where they have been read already. Raises FaststyError.
    """
    picture = read_picture(path if data is None else data, name=str(path))
    image = picture.in_srgb().scaled_down(short_side).on_white().rgb
    if min(image.size) < SMALLEST:
        size = f"{image.width} x {image.height}"
        raise FaststyError(f"{path}: {size} px is too small to learn from; {SMALLEST} is the least")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def remove_cache(folder: Path) -> None:
    """Remove what caches have left in `folder`, and the folder itself if nothing else is in it."""
    for shelf in folder.glob("[0-9a-f][0-9a-f]"):
        for place in [*shelf.glob(PLACE), *shelf.glob(f".{PLACE}-*")]:
            with suppress(OSError):
                place.unlink()
        with suppress(OSError):
            shelf.rmdir()
    with suppress(OSError):
        folder.rmdir()


class PictureCache:
    """Keeps decoded pictures for all sources of a run; used by several threads at once.

    Args:
        folder: for the files; None keeps pictures in memory only.
        always: use the folder from the first picture on, not only when memory is full.
    Attributes:
        trouble: why the folder is no longer written to, in words, or None.
    """

    def __init__(self, folder: Path | None = None, *, always: bool = False) -> None:
        self.folder = folder
        self.trouble: str | None = None
        self._memory: dict[tuple[Path, int], Tensor] = {}
        self._tidy: set[Path] = set()  # shelves without what killed processes left
        self._places: dict[tuple[Path, int], Path] = {}  # where those of the folder are
        self._bytes = 0
        self._use_folder = always and folder is not None

    def get(self, path: Path, short_side: int, *, check: bool = True) -> Tensor:
        """The picture as uint8 [3, H, W]; `check` compares the checksum of a file of the folder.

        Raises FaststyError when the original is not known yet and cannot be read.
        """
        kept = self._memory.get((path, short_side))
        if kept is not None:
            return kept
        picture = self._from_folder(path, short_side, check) if self._use_folder else None
        if picture is None:
            picture = load_tensor(path, short_side)
            if self._bytes + picture.nbytes <= MEMORY:
                self._memory[path, short_side] = picture
                self._bytes += picture.nbytes
            else:
                self._use_folder = self.folder is not None
        return picture

    # -- the folder ----------------------------------------------------------------------------

    def _from_folder(self, path: Path, short_side: int, check: bool) -> Tensor | None:
        """The picture from the folder, put there before where it is missing; None without one.

        Once it is there its original may vanish, as from a share that is away for a moment.
        """
        place = self._places.get((path, short_side))
        if place is not None and (picture := self._read(place, check)) is not None:
            return picture
        try:
            about = path.stat()
        except OSError:  # it vanished; what is wrong with it is said where it is decoded
            return None
        known = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}"
        link = self._place(os.fsencode(known), short_side)
        picture = self._read(link, check)
        if picture is not None:
            self._places[path, short_side] = link
            return picture
        if self.trouble is not None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        file = self._place(data, short_side)
        picture = self._read(file, check=True)
        if picture is None:
            picture = load_tensor(path, short_side, data)
            if not self._write(file, picture):
                return picture
        self._places[path, short_side] = file
        with suppress(OSError):  # no links here: its bytes are read again in the next run
            link.parent.mkdir(exist_ok=True)
            os.link(file, link)
        return picture

    def _place(self, identity: bytes, short_side: int) -> Path:
        assert self.folder is not None
        name = hashlib.blake2b(identity, digest_size=16, salt=str(short_side).encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _read(self, place: Path, check: bool) -> Tensor | None:
        """Map a file of the folder; a damaged one is removed."""
        try:
            size = place.stat().st_size
            # Mapped, without a descriptor that stays open as Python's mmap keeps one.
            data = torch.from_file(str(place), shared=False, size=size, dtype=torch.uint8)
        except (OSError, RuntimeError):  # RuntimeError: torch's, of the system
            return None
        numbers = data.numpy().data
        try:
            magic, height, width, checksum = HEADER.unpack_from(numbers)
            if magic != MAGIC or size != HEADER.size + 3 * height * width:
                raise ValueError
            if check and zlib.crc32(numbers[HEADER.size :]) != checksum:
                raise ValueError
        except (ValueError, struct.error):
            with suppress(OSError):
                place.unlink()
            return None
        return data[HEADER.size :].view(height, width, 3).permute(2, 0, 1)

    def _write(self, place: Path, picture: Tensor) -> bool:
        """Make a file of the folder; a full disk is noted, and the folder is left alone then."""
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        header = HEADER.pack(MAGIC, *picture.shape[1:], zlib.crc32(pixels.data))
        temporary = place.with_name(f".{place.name}-{os.getpid()}-{threading.get_ident()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._tidy_up(place.parent)
            if shutil.disk_usage(place.parent).free < RESERVE + pixels.nbytes:
                raise OSError(errno.ENOSPC, f"less than {RESERVE >> 20} MiB are free")
            with temporary.open("wb") as file:  # no fsync: the checksum tells
                file.write(header)
                file.write(pixels.data)
            temporary.replace(place)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self.trouble = (
                f"{self.folder}: no pictures can be kept there now ({error.strerror}); "
                "those that do not fit into memory are decoded each time"
            )
            return False
        return True

    def _tidy_up(self, shelf: Path) -> None:
        """Remove what killed processes left, once."""
        if shelf in self._tidy:
            return
        self._tidy.add(shelf)
        for path in shelf.glob(f".{PLACE}-*"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - LEFT:
                    path.unlink()
