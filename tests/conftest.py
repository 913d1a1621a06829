"""What tests of several parts share."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def pytest_configure() -> None:
    """Programs that tests start can be interrupted, even where pytest runs in the background; block
    sizes that somebody measured on this machine play no part."""
    os.environ["FASTSTY_TUNED"] = os.path.join(os.devnull, "none")
    if "PYTEST_XDIST_WORKER" in os.environ:  # several threads each would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked `gpu` run where there is a CUDA device, and are skipped elsewhere."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


QUADRANTS = np.array([[[200, 40, 40], [40, 180, 40]], [[40, 40, 190], [210, 210, 200]]], np.uint8)


def write_film(
    path: Path,
    *,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    times: list[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    colors: tuple[int, int, int, int] = (0, 0, 0, 0),
    aspect: Fraction | None = None,
    turn: int = 0,
    mirror: bool = False,
    audio: str | None = None,
    layout: str = "mono",
    metadata: dict[str, str] | None = None,
    format: str | None = None,
    clock: float = 0,
    reordered: int = 0,
) -> Path:
    """A tiny film: red, green, blue and white quadrants, darker from frame to frame.

    `times` are in hundredths of a second. `colors` are matrix, range, primaries and transfer.
    `clock` is added to the times, in seconds. `reordered` frames in a row wait for a later one.
    """
    import av

    width, height = size
    options = {"output_ts_offset": str(clock)} if clock else {}
    with av.open(str(path), "w", format=format, options=options) as file:
        file.metadata.update(metadata or {})
        video = file.add_stream(
            codec,
            rate=rate,
            options={"crf": "6", "g": "5", "preset": "ultrafast", "bf": str(reordered)},
        )
        video.width, video.height, video.pix_fmt = width, height, pixels
        context = video.codec_context
        context.time_base = Fraction(1, 100 if times else rate)
        context.colorspace, context.color_range = colors[0] or 2, colors[1]
        context.color_primaries, context.color_trc = colors[2] or 2, colors[3] or 2
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if turn or mirror:
            video.set_display_rotation(turn, hflip=mirror)
        sound = file.add_stream(audio, rate=48000, layout=layout) if audio else None
        picture = np.kron(QUADRANTS, np.ones((height // 2, width // 2, 1), np.uint8))
        for i in range(frames):
            rgb = av.VideoFrame.from_ndarray((picture * (1 - i / 40)).astype(np.uint8), "rgb24")
            rgb.colorspace = colors[0] or 2
            frame = rgb.reformat(format=pixels, dst_color_range=colors[1])
            frame.pts = times[i] if times else i
            frame.time_base = Fraction(1, 100 if times else rate)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if sound is not None:
            samples = np.sin(np.arange(48000 * frames // rate) * 2 * np.pi * 440 / 48000)
            samples = np.repeat(samples, av.AudioLayout(layout).nb_channels)
            wave = av.AudioFrame.from_ndarray(samples[None].astype(np.float32) / 2, "flt", layout)
            wave.sample_rate, wave.pts, wave.time_base = 48000, 0, Fraction(1, 48000)
            file.mux(sound.encode(wave))
            file.mux(sound.encode(None))
    return path


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny film into the test's folder: film("a.mp4", frames=5, …)."""

    def write(name: str, **options: Any) -> Path:
        return write_film(tmp_path / name, **options)

    return write


@pytest.fixture
def disk_in_memory() -> Iterator[Path]:
    """A folder below /dev that is one as any."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def dim_profile() -> bytes:
    """sRGB's profile, with half as much light in its green."""
    from PIL import ImageCms

    place = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    green = place.index(b"gXYZ", 128)
    at = int.from_bytes(place[green + 4 : green + 8], "big")
    values = np.frombuffer(place[at + 8 : at + 20], ">i4") // 2
    changed: bytes = place[: at + 8] + values.astype(">i4").tobytes() + place[at + 20 :]
    return changed


@pytest.fixture(scope="session")
def two_photos() -> list[Any]:
    """Two smooth pictures, [3, 90, 120]."""
    import torch  # not sooner: it reads the number of threads, which is set above

    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(120.0), indexing="ij")
    waves = [torch.sin(x / 9 + k) + torch.cos(y / 7 - k) for k in range(6)]
    pictures = torch.stack(waves).view(2, 3, 90, 120) / 4 + 0.5
    return list(pictures)
