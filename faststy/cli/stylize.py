"""`faststy stylize`: paint pictures, folders and standard input with a trained model."""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faststy.cli import STOPPED, _options, counted, is_terminal, tell
from faststy.cli._options import STREAM
from faststy.errors import FaststyError, UnwritableError
from faststy.files import mode_of, redirected_input, without_links

if TYPE_CHECKING:
    from faststy.stylization.realtime import Dials
    from faststy.stylization.stylizer import Stylizer


class MemorySize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Bytes, as 500M, 2G or 1.5GiB."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        match = re.fullmatch(r"([\d.]+) *([kmgt]?)(i?b)?", str(value).strip(), re.IGNORECASE)
        size = 0.0
        if match is not None:
            with suppress(ValueError):  # 1.2.3 is no number
                size = float(match[1]) * 1024 ** ("", "k", "m", "g", "t").index(match[2].lower())
        if not 1 <= size < math.inf:
            self.fail(f"{value!r} is no size; write 500M or 2G", param, context)
        return int(size)


@dataclass(frozen=True)
class Job:
    """One picture to paint; a source or target of None is standard input or output."""

    source: Path | None
    target: Path | None
    map_target: Path | None = None

    @property
    def name(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def is_piped(self) -> bool:
        """Whether it can be read only once, as standard input and <(a command) can."""
        return self.source is None or stat.S_ISFIFO(mode_of(self.source))

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.target, self.map_target) if path is not None]


@dataclass
class Summary:
    """What `--json` prints."""

    model: str
    style: dict[str, float]
    device: str
    painted: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=_options.NAME)
@_options.model
@click.option("-o", "--out", type=_options.NAME, help="A file, a folder, or - for standard output.")
@_options.style
@click.option(
    "--strength",
    type=_options.FiniteRange(0, 1),
    default=1.0,
    show_default=True,
    help="0 is the photo, 1 the full style.",
)
@_options.repair
@click.option("--keep-color", is_flag=True, help="Keep the colours of the photo.")
@_options.stroke
@click.option(
    "--mask", type=_options.NAME, help="A picture that says where: white is painted, black is not."
)
@click.option(
    "--size",
    metavar="PIXELS",
    type=click.IntRange(16),
    help="Short side to paint at and to write; smaller pictures stay as they are.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    type=MemorySize(),
    help="Most memory to take, as 2G or 500M: larger pictures are painted in tiles, which show "
    "nowhere.  [default: two thirds of what is free]",
)
@click.option(
    "--save-map",
    is_flag=True,
    help="Also write the map of lost content, NAME_lost.png. Tiles have none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as one JSON object.")
def command(
    inputs: tuple[str, ...],
    model: str,
    out: str | None,
    style: str | None,
    strength: float,
    repair: float | None,
    keep_color: bool,
    stroke: int | None,
    mask: str | None,
    size: int | None,
    memory: int | None,
    save_map: bool,
    as_json: bool,
) -> None:
    """Paint pictures with a trained model.

    INPUT is a picture, a folder (read with all its subfolders), or - for standard input, which is
    written to standard output unless -o says otherwise.

    Without -o, NAME_STYLE appears beside each picture or folder. With -o, one picture becomes that
    file, or lies in that folder if OUT is one or has no suffix; one folder becomes that folder;
    several inputs lie in that folder under their own names. Formats that are read but not written
    become PNG. An input is never overwritten.

    Pictures that cannot be read, or written under their name, are skipped and listed. A full disk
    ends it. Exit status: 0 when all were painted, 1 when some were not, 2 when nothing could be
    painted or written, 130 after Ctrl-C.

    \b
    faststy stylize photo.jpg --style ink
    faststy stylize photo.jpg -m run/model.safetensors
    faststy stylize holiday/ -m run/model.safetensors -o painted --strength 0.8
    cat photo.jpg | faststy stylize - -m run/model.safetensors > painted.jpg
    """
    from faststy.pictures import encode_picture, heat_map, read_picture
    from faststy.stylization.stylizer import mixing_weights

    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata is nobody's business here
    stylizer = _options.loaded(model, repair)
    weights = mixing_weights(style, stylizer.styles)
    if save_map and stylizer.model.repairer is None:
        raise FaststyError(f"{model}: has no repairer, so there is no map to save")
    for name in inputs:
        if name in stylizer.styles and not os.path.exists(name):
            raise FaststyError(f"{name}: is a style and no picture; write --style {name}")
    jobs = plan(inputs, out, _options.label_of(weights), save_map)
    check(jobs, [Path(model), *([Path(mask)] if mask else [])], as_json)
    mask_picture = None if mask is None else read_picture(mask).to_image()

    dials: Dials = {
        "style": weights,
        "strength": strength,
        "repair": repair,
        "keep_color": keep_color,
        "stroke": stroke,
    }
    summary = Summary(model, weights, str(stylizer.device))
    begin = time.perf_counter()
    stopped = False
    failure: UnwritableError | None = None
    try:
        for job, progress in _with_progress(jobs):
            start = time.perf_counter()
            try:
                if mask is None and size is None and not save_map:
                    painted_size = _paint_in_strips(stylizer, job, memory, progress, dials)
                    if painted_size is not None:
                        seconds = time.perf_counter() - start
                        summary.painted.append(_entry(job, painted_size, seconds))
                        _tell_what_is_left_out(job)
                        continue
                source = io.BytesIO(sys.stdin.buffer.read()) if job.source is None else job.source
                if isinstance(source, io.BytesIO) or not job.is_piped:
                    _warn_if_held(stylizer, job, source, size, memory, dials)
                photo = read_picture(source, name=job.name)
                if mask_picture is not None:
                    _warn_of_shape(job, photo.size, mask_picture.size)
                painting = stylizer.paint(
                    photo,
                    style=weights,
                    strength=strength,
                    repair=repair,
                    keep_color=keep_color,
                    mask=mask_picture,
                    size=size,
                    stroke=stroke,
                    memory=memory,
                    progress=progress,
                )
                format = _format(job, photo.format)
                del photo  # a large one makes room
                data = encode_picture(painting.picture, format)
                lost = painting.lost_content
                if save_map and lost is None:
                    tell(
                        f"faststy: {job.name}: painted in tiles, there is no map to save; "
                        "give more --memory"
                    )
                    job = replace(job, map_target=None)
                heat = (
                    encode_picture(heat_map(lost), "PNG") if save_map and lost is not None else None
                )
                _write(job.target, data)
                if heat is not None:
                    _write(job.map_target, heat)
            except FaststyError as error:
                if len(jobs) == 1 or isinstance(error, UnwritableError):
                    raise
                summary.skipped.append({"input": job.name, "reason": str(error)})
                continue
            _tell_what_is_left_out(job)
            summary.painted.append(_entry(job, painting.picture.size, time.perf_counter() - start))
    except KeyboardInterrupt:
        stopped = True
        whole = len(summary.painted)
        tell(f"faststy: stopped; {whole} of {counted(len(jobs), 'picture')} painted")
    except UnwritableError as error:  # the next one would fare no better
        failure = error
    summary.seconds = round(time.perf_counter() - begin, 3)

    if summary.skipped:
        tell(f"faststy: skipped {len(summary.skipped)} of {counted(len(jobs), 'picture')}:")
        for entry in summary.skipped:
            tell(f"  {entry['reason']}")
    if failure is not None:
        summary.skipped.append({"input": job.name, "reason": str(failure)})
    if as_json:
        click.echo(json.dumps(vars(summary)))
    if stopped:
        sys.exit(STOPPED)
    if failure is not None and not summary.painted:
        raise failure
    if failure is not None:
        whole = len(summary.painted)
        tell(f"faststy: {failure}; {whole} of {counted(len(jobs), 'picture')} painted")
        sys.exit(1)
    if not summary.painted:
        raise FaststyError(f"none of {counted(len(jobs), 'picture')} could be painted")
    if is_terminal(sys.stderr) and not as_json:
        _tell_where(summary)
    if summary.skipped:
        sys.exit(1)


def _tell_where(summary: Summary) -> None:
    """To a person, who may not have named the output."""
    outputs = [Path(entry["output"]) for entry in summary.painted if entry["output"] != STREAM]
    if len(outputs) == 1:
        tell(str(outputs[0]))
    elif outputs:
        folder = Path(os.path.commonpath([path.parent.absolute() for path in outputs]))
        here = Path.cwd()
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        tell(f"{counted(len(outputs), 'picture')} in {shown}")


def _tell_what_is_left_out(job: Job) -> None:
    """All but the first picture of an animation, or of a file with pages."""
    from faststy.pictures import frames_in

    if job.source is None or job.is_piped:
        return
    if (count := frames_in(job.source)) > 1:
        moves = job.source.suffix.lower() in (".gif", ".apng")
        rest = "; faststy video paints all" if moves else ""
        tell(f"faststy: {job.name}: of its {count} pictures the first is painted{rest}")


def _paint_in_strips(
    stylizer: Stylizer,
    job: Job,
    memory: int | None,
    progress: Callable[[float], None],
    dials: Dials,
) -> tuple[int, int] | None:
    """From file to file what memory cannot hold: its size, or None if it is painted otherwise."""
    from faststy.stylization import strips, tiles

    if job.source is None or job.is_piped or job.target is None:
        return None
    picture = strips.look_at(job.source, job.target)
    if picture is None:
        return None
    limit = tiles.limit(memory, stylizer.device)
    halo = stylizer.halo(picture.size, **dials)
    if tiles.side_within(limit, halo, picture.size) is None:
        return None
    if not strips.is_available():
        gigabytes = tiles.PER_PIXEL * picture.size[0] * picture.size[1] / 1e9
        tell(
            f"faststy: {job.name} is held in memory as a whole, {gigabytes:.1f} GB; "
            "pip install 'faststy[large]' paints it in strips"
        )
        return None
    _warn_of_memory(job, strips.least_memory(halo, picture.size[0]), memory)
    strips.paint_file(stylizer, picture, job.target, memory=memory, progress=progress, **dials)
    return picture.size


def _warn_if_held(
    stylizer: Stylizer,
    job: Job,
    source: Path | io.BytesIO,
    size: int | None,
    memory: int | None,
    dials: Dials,
) -> None:
    """Looks at a picture that will be held as a whole, and says so where memory has no room."""
    from faststy.pictures import size_of
    from faststy.stylization import tiles

    photo = size_of(source)
    if photo is None:  # read_picture says what is wrong with it
        return
    ratio = 1.0 if size is None else min(1.0, size / min(photo))
    painted = (math.ceil(photo[0] * ratio), math.ceil(photo[1] * ratio))
    # What is scaled down is still held at its full size.
    held = 0 if ratio == 1 else tiles.PER_PIXEL // 2 * photo[0] * photo[1]
    needed = tiles.least_memory(stylizer.halo(painted, **dials), painted) + held
    _warn_of_memory(job, needed, memory)


def _warn_of_memory(job: Job, needed: int, memory: int | None) -> None:
    from faststy.stylization import tiles

    limit = memory or tiles.available_memory()
    if needed > limit:
        most = "--memory" if memory else "what is free to take,"
        tell(
            f"faststy: {job.name} takes about {math.ceil(needed / (1 << 20))}M of memory, "
            f"more than {most} {limit >> 20}M; it is painted all the same"
        )


def _warn_of_shape(job: Job, photo: tuple[int, int], mask: tuple[int, int]) -> None:
    """A mask may have any size; one of another shape is that of another photo, or lies down."""
    stretched = mask[0] / mask[1] * photo[1] / photo[0]
    if abs(stretched - 1) > 0.02 + 1 / min(mask):  # more than rounding
        tell(
            f"faststy: {job.name}: the mask of {mask[0]} x {mask[1]} is stretched to "
            f"{photo[0]} x {photo[1]}"
        )


def plan(inputs: tuple[str, ...], out: str | None, label: str, save_map: bool) -> list[Job]:
    """Which picture is written where.

    Raises FaststyError for inputs and an output that do not go together, and for a folder without
    pictures.
    """
    several = len(inputs) > 1
    if several and (STREAM in inputs or out == STREAM):
        raise FaststyError("standard input and output take one picture; name only one INPUT")
    if out and _writable(out) == out and not os.path.isdir(out):
        if several:
            raise FaststyError(f"{out}: names a picture, but several inputs need a folder")
        if os.path.isdir(inputs[0]):
            raise FaststyError(f"{out}: names a picture, but a folder gives a folder")
    jobs: list[Job] = []
    for text in inputs:
        path = Path(text)
        if text == STREAM:
            jobs.append(Job(None, None if out in (None, STREAM) else Path(str(out))))
        elif os.path.isdir(path):
            if out == STREAM:
                raise FaststyError(f"{text}: a folder cannot go to standard output; name one by -o")
            name = path.resolve().name or "painted"
            folder = path.resolve().with_name(f"{name}_{label}") if out is None else Path(out)
            jobs += _folder_jobs(path, folder / name if several and out else folder)
        elif out == STREAM:
            jobs.append(Job(path, None))
        elif out is None and _options.is_device(path):
            raise FaststyError(f"{text} has no name; name the output by -o painted.png")
        elif out is None:
            jobs.append(Job(path, path.with_name(_writable(f"{path.stem}_{label}{path.suffix}"))))
        elif several or out.endswith(os.sep) or os.path.isdir(out) or not Path(out).suffix:
            jobs.append(Job(path, Path(out, _writable(path.name))))
        else:
            jobs.append(Job(path, Path(out)))
    if not save_map:
        return jobs
    if any(job.target is None for job in jobs):
        raise FaststyError("--save-map needs an output file; name one by -o")
    targets = [job.target for job in jobs if job.target]
    maps = Counter(map(_map_target, targets))
    return [
        replace(job, map_target=_map_target(job.target, whole=maps[_map_target(job.target)] > 1))
        for job in jobs
        if job.target
    ]


def _folder_jobs(folder: Path, out: Path) -> Iterator[Job]:
    from faststy.pictures import list_pictures

    inside, whole = without_links(out), without_links(folder)
    sources = list_pictures(folder, foreign=True)
    if inside.is_relative_to(whole) and inside != whole:
        # What an earlier run painted is no input of this one.
        sources = [path for path in sources if not without_links(path).is_relative_to(inside)]
        if not sources:
            raise FaststyError(f"{folder}: no pictures in this folder, other than those in {out}")
    for path in sources:
        relative = path.relative_to(folder)
        yield Job(path, out / relative.with_name(_writable(relative.name)))


def check(jobs: list[Job], others: list[Path], as_json: bool) -> None:
    """Finds out before the first picture is painted what would go wrong in the end.

    Raises FaststyError for an unknown suffix, a target that is an input or is written twice, and
    for a picture and JSON, or a terminal, on standard output.
    """
    from faststy.pictures import format_of

    sources = [job.source for job in jobs if job.source is not None]
    protected = {_identity(path) for path in [*sources, *others] if os.path.exists(path)}
    if any(job.source is None for job in jobs) and (redirected := redirected_input()) is not None:
        protected.add(redirected)
    seen: dict[Path, str] = {}
    for job in jobs:
        if job.source is None and sys.stdin is None:
            raise FaststyError("standard input is closed; name a picture")
        if job.target is None:
            if as_json:
                raise FaststyError("--json and the picture both want standard output; name a file")
            if sys.stdout is None:
                raise FaststyError("standard output is closed; name a file by -o")
            if sys.stdout.isatty():
                raise FaststyError("standard output is a terminal; name a file by -o")
        for target in job.targets:
            format_of(target)
            if os.path.exists(target) and _identity(target) in protected:
                raise FaststyError(f"{target}: is an input and will not be overwritten; change -o")
            if target in seen:
                raise FaststyError(f"{target}: both {seen[target]} and {job.name} would be written")
            seen[target] = job.name


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _writable(name: str) -> str:
    """`name`, with .png added when faststy does not write its format."""
    from faststy.pictures import format_of

    try:
        format_of(name)
    except FaststyError:
        return f"{name}.png"
    return name


def _map_target(target: Path, *, whole: bool = False) -> Path:
    """Beside the painting; with its `whole` name where two differ by their suffixes alone."""
    return target.with_name(f"{target.name if whole else target.stem}_lost.png")


def _format(job: Job, source_format: str | None) -> str:
    """The target's format; on standard output that of the photo, or PNG."""
    from faststy.pictures import WRITABLE, format_of

    if job.target is not None:
        return format_of(job.target)
    return source_format if source_format in WRITABLE else "PNG"


def _write(target: Path | None, data: bytes) -> None:
    from faststy.pictures import write_data

    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_data(data, target)


def _entry(job: Job, size: tuple[int, int], seconds: float) -> dict[str, Any]:
    width, height = size
    output = STREAM if job.target is None else str(job.target)
    entry: dict[str, Any] = {"input": job.name, "output": output}
    if job.map_target is not None:
        entry["map"] = str(job.map_target)
    return {**entry, "width": width, "height": height, "seconds": round(seconds, 3)}


def _with_progress(jobs: list[Job]) -> Iterator[tuple[Job, Callable[[float], None]]]:
    """The jobs, each with what is told the part of it that is done, behind a progress bar.

    The bar is there when a person watches: from the start when there are several jobs, else when
    the first tile is painted.
    """
    if not is_terminal(sys.stderr):
        yield from ((job, lambda part: None) for job in jobs)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Painting", total=len(jobs), visible=len(jobs) > 1)
        for done, job in enumerate(jobs):

            def tell(part: float, done: int = done) -> None:
                bar.update(task, completed=done + part, visible=True)

            yield job, tell
            bar.update(task, completed=done + 1)
