"""What the package ships: sample photos, style pictures, the ready styles and the encoder.

``README.md`` gives their sources.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["encoder", "model", "photos", "styles"]

_HERE = Path(__file__).parent


def model() -> Path:
    """The bundled model of ready styles, which paints where no other is named."""
    return _HERE / "styles.safetensors"


def encoder() -> Path:
    """The bundled weights of the encoder that judges paintings."""
    return _HERE / "encoder.safetensors"


def photos() -> list[Path]:
    """The bundled sample photos, sorted by name: RGB JPEG files in the public domain."""
    return sorted((_HERE / "photos").glob("*.jpg"))


def styles() -> dict[str, Path]:
    """The bundled style pictures by name, sorted: RGB JPEG files, at least 700 px a side."""
    return {path.stem: path for path in sorted((_HERE / "styles").glob("*.jpg"))}
