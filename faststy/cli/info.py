"""`faststy info`: what is installed and what computes each op here, or what a model file holds."""

import json
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from faststy.cli import _options, printable

BUILD = "FASTSTY_BUILD_EXT=cpu pip install --no-build-isolation --editable ."


@click.command()
@click.argument("model", required=False, type=_options.PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: Path | None, as_json: bool) -> None:
    """Show what is installed and active here, or what MODEL holds.

    \b
    faststy info
    faststy info run/model.safetensors
    """
    facts = about_this_machine() if model is None else about_model(model)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo("\n".join(map(printable, _lines(_with_descriptions(facts)))))


def about_this_machine() -> dict[str, Any]:
    """Versions, devices, the state of the extension, and the implementation of every op."""
    import torch

    from faststy import __version__, ops

    devices = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        chip = f"sm_{device.major}{device.minor}"
        devices.append(f"cuda:{i}: {device.name}, {chip}, {device.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps: Apple GPU")
    return {
        "faststy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "devices": devices,
        "extension": _extension(),
        "ops": [row._asdict() for row in ops.implementations()],
    }


def about_model(path: Path) -> dict[str, Any]:
    """What a model file says of itself, and its size. Raises FaststyError."""
    from faststy.model_file import load_info

    info = load_info(path)  # first: it says what is wrong with the file
    return {"file": str(path), "bytes": path.stat().st_size, **vars(info)}


def _with_descriptions(facts: dict[str, Any]) -> dict[str, Any]:
    """Those of a model's styles beside their names, for people to read."""
    told = facts.get("descriptions")
    if not told:
        return facts
    rows = [{"name": name, "description": told.get(name, "")} for name in facts["styles"]]
    return facts | {"styles": rows, "descriptions": None}


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extension() -> str:
    if find_spec("faststy._C") is None:  # whether it also loads is told with the ops
        return f"not built: pure Python ({BUILD} builds it, or says why it cannot)"
    return "built"


def _lines(facts: dict[str, Any]) -> list[str]:
    """`name  value`, one a line; the rows of a list under each other; absent things left out."""
    lines = []
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        if value in (None, "", [], {}, 0):  # a model that does not know a number of its says 0
            continue
        rows = value if isinstance(value, list) else [value]
        rows = [f"{row:.4g}" if isinstance(row, float) else row for row in rows]
        if all(isinstance(row, dict) for row in rows):
            rows = _columns(rows) if isinstance(value, list) else _pairs(value)
        lines.append(f"{name.replace('_', ' '):{width}}{rows[0]}")
        lines += [f"{'':{width}}{row}" for row in rows[1:]]
    return [line.rstrip() for line in lines]


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    widths = [max(len(str(row[key])) for row in rows) for key in rows[0]]
    return [
        "  ".join(f"{value!s:{width}}" for value, width in zip(row.values(), widths, strict=True))
        for row in rows
    ]


def _pairs(value: dict[str, Any]) -> list[str]:
    return [", ".join(f"{key} {item}" for key, item in value.items())]
