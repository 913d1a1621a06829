"""Paint the bundled style pictures from nothing: brushes, pens, panes and washes in NumPy.

    python tools/paint_styles.py [--out DIR] [NAME...]

A picture is composed as a `Scene` (what colour lies where, which way the brush moves) and then
painted on a `Canvas` at twice the final resolution, where paint has a height that catches light.
Positions in a scene are in 0...1, x to the right and y down; brush sizes are in final pixels.
The same seed gives the same picture.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]  # float32 but for a few masks
Rng = np.random.Generator

SIDE = 768  # of the finished picture, in pixels
SCALE = 2  # canvas pixels per finished pixel
KILOBYTES = 340  # a finished file is at most this big


# ------------------------------------------------------------------------------ fields


def grid(side: int = SIDE) -> tuple[Array, Array]:
    """Pixel centres x and y, each (side, side), in 0...1."""
    t = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.meshgrid(t, t)
    return x, y


def resize(field: Array, side: int) -> Array:
    """Resize a (H, W) or (H, W, 3) field to side x side by cubic interpolation."""
    if field.ndim == 3:
        return np.stack([resize(field[..., i], side) for i in range(field.shape[2])], axis=-1)
    picture = Image.fromarray(field.astype(np.float32))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def noise(rng: Rng, cells: int, octaves: int = 4, side: int = SIDE) -> Array:
    """Smooth random field (side, side), about -2...2; its largest features span 1 / cells."""
    total: Array = np.zeros((side, side), dtype=np.float32)
    for octave in range(octaves):
        knots = rng.standard_normal((cells * 2**octave + 2,) * 2, dtype=np.float32)
        total += resize(knots, side) * 0.5**octave
    unit: Array = (total - total.mean()) / total.std()
    return unit


def blur(field: Array, sigma: float) -> Array:
    """Gaussian blur of a (H, W) or (H, W, 3) field, mirrored at the borders."""
    if field.ndim == 3:
        return np.stack([blur(field[..., i], sigma) for i in range(field.shape[2])], axis=-1)
    pad = math.ceil(3 * sigma)
    padded = np.pad(field, pad, mode="symmetric")
    rows, columns = (np.fft.fftfreq(n).astype(np.float32) for n in padded.shape)
    columns = columns[: padded.shape[1] // 2 + 1]
    gain = np.exp(-2 * (math.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns[None] ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(padded) * gain, s=padded.shape)
    return smooth[pad:-pad, pad:-pad].astype(np.float32)


def step(field: Array, low: float, high: float) -> Array:
    """Smooth step from 0 at `low` to 1 at `high` (which may be below `low`)."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rgb(code: str) -> Array:
    """'#rrggbb' as three floats in 0...1."""
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32) / 255


def ramp(t: Array, *codes: str) -> Array:
    """Colours (..., 3) along a gradient of evenly spaced '#rrggbb' stops, t in 0...1."""
    stops = np.stack([rgb(code) for code in codes])
    at = np.linspace(0, 1, len(stops))
    channels = [np.interp(t, at, stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def lookup(field: Array, at: Array) -> Array:
    """Values of a (side, side, ...) field at the points `at` (..., 2), given in 0...1."""
    side = field.shape[0]
    index = np.clip((at * side).astype(np.int32), 0, side - 1)
    values: Array = field[index[..., 1], index[..., 0]]
    return values


def along(height: Array) -> Array:
    """Directions (side, side, 2) that follow the level lines of a field."""
    gy, gx = np.gradient(height)
    flow = np.stack([gy, -gx], axis=-1)
    unit: Array = flow / np.maximum(np.linalg.norm(flow, axis=-1, keepdims=True), 1e-9)
    return unit


# ------------------------------------------------------------------------------ scene


class Scene:
    """What to paint: `color` (SIDE, SIDE, 3) in 0...1 and `flow` (SIDE, SIDE, 2), unit vectors."""

    def __init__(self) -> None:
        self.x, self.y = grid()
        self.color: Array = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
        self.flow: Array = np.zeros((SIDE, SIDE, 2), dtype=np.float32)
        self.flow[..., 0] = 1

    def put(self, mask: Array, color: Array, flow: Array | None = None) -> None:
        """Lay a colour, a (3,) or a (SIDE, SIDE, 3) field, over what is there, by a 0...1 mask."""
        self.color += mask[..., None] * (color - self.color)
        if flow is not None:
            self.flow = np.where(mask[..., None] > 0.5, flow, self.flow)

    def disc(self, cx: float, cy: float, radius: float, soft: float = 0.004) -> Array:
        return step(np.hypot(self.x - cx, self.y - cy), radius + soft, radius - soft)


# ------------------------------------------------------------------------------ canvas


@dataclass(frozen=True)
class Brush:
    """How a tool leaves its paint."""

    load: float = 1.3  # how thick the paint lies
    bristle: float = 0.5  # how deep the bristles cut
    streak: float = 0.12  # how much the colour varies between bristles
    dry: float = 0.35  # how ragged the ends are
    point: float = 6.0  # how the ends narrow: 2 is a pointed stroke, 8 a flat one
    opacity: float = 1.0
    wobble: float = 0.0  # how unsteady the hand is, in pixels


OIL = Brush()
KNIFE = Brush(load=1.6, bristle=0.16, streak=0.07, dry=0.22, point=14)
PEN = Brush(load=0, streak=0.05, dry=0.3, point=2.2, opacity=0.88, wobble=0.8)
WET = Brush(load=0, streak=0, dry=0.1, point=2, wobble=1.5)


class Canvas:
    """Paint: `color` (N, N, 3) and `height` (N, N) of the paint, with N = SIDE * SCALE."""

    def __init__(self, ground: Array) -> None:
        self.side = SIDE * SCALE
        self.color: Array = np.broadcast_to(ground, (self.side, self.side, 3)).astype(np.float32)
        self.height: Array = np.zeros((self.side, self.side), dtype=np.float32)

    def stroke(
        self,
        rng: Rng,
        brush: Brush,
        at: Array,
        flow: Array,
        color: Array,
        length: float | Array,
        width: float | Array,
    ) -> None:
        """Pull one stroke through each point of `at` (n, 2), later strokes over earlier ones.

        `color` is (n, 3) or (3,); `length` and `width` are in final pixels, a number or (n,).
        """
        n = len(at)
        colors = np.broadcast_to(color, (n, 3))
        lengths = np.broadcast_to(np.asarray(length, dtype=np.float32), (n,))
        widths = np.broadcast_to(np.asarray(width, dtype=np.float32), (n,))
        for start in range(0, n, 200):
            part = slice(start, start + 200)
            path = self._trace(rng, brush, at[part], flow, lengths[part])
            self._stamp(rng, brush, path, colors[part], widths[part])

    def _trace(self, rng: Rng, brush: Brush, at: Array, flow: Array, length: Array) -> Array:
        """The middle lines of strokes that follow the flow both ways from `at`: (n, m, 2)."""
        half = max(2, math.ceil(float(length.max()) * SCALE / 2 / 0.8))
        stride = (length / 2 / half / SIDE)[:, None].astype(np.float32)
        middle = lookup(flow, at)
        arms = []
        for sign in (-1.0, 1.0):
            point, heading, arm = at, middle * np.float32(sign), []
            for _ in range(half):
                point = point + heading * stride
                arm.append(point)
                turn = lookup(flow, point)
                # a brush has no front and back: keep going the way it goes
                agree = np.sign((turn * heading).sum(-1, keepdims=True)) + 1e-3
                heading = np.sign(agree) * turn
            arms.append(arm)
        path: Array = np.stack([*arms[0][::-1], at, *arms[1]], axis=1).astype(np.float32)
        if brush.wobble:
            knots = rng.standard_normal((len(at), 5, 2), dtype=np.float32) * brush.wobble / SIDE
            t = np.linspace(0, 3.999, path.shape[1])
            low = t.astype(int)
            blend = (t - low).astype(np.float32)[None, :, None]
            path += knots[:, low] * (1 - blend) + knots[:, low + 1] * blend
        return path

    def _stamp(self, rng: Rng, brush: Brush, path: Array, color: Array, width: Array) -> None:
        """Put paint along the middle lines `path` (n, m, 2)."""
        n, m = path.shape[:2]
        k = max(3, math.ceil(float(width.max()) * SCALE * 1.4))
        u = np.linspace(-1, 1, m, dtype=np.float32)[None, :, None]  # along the stroke
        v = np.linspace(-1, 1, k, dtype=np.float32)[None, None, :]  # across it

        tangent = np.gradient(path, axis=1)
        tangent /= np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-9)
        normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1)
        pressure = np.sqrt(np.clip(1 - np.abs(u) ** brush.point, 0, 1))
        reach = v * pressure * (width[:, None, None] / 2 / SIDE)  # [n, m, k]
        spot = (path[:, :, None] + normal[:, :, None] * reach[..., None]) * self.side

        knots = rng.standard_normal((n, 1, k // 3 + 2), dtype=np.float32)  # a bristle is 2 px wide
        low, blend = np.divmod(np.arange(k, dtype=np.float32) / 3, 1)
        index = low.astype(np.int32)
        bristles = knots[..., index] * (1 - blend) + knots[..., index + 1] * blend
        ends = rng.random((2, n, 1, k), dtype=np.float32) * brush.dry
        px = spot.astype(np.int32)
        keep = (u > ends[0] - 1) & (u < 1 - ends[1] * 1.6)
        keep &= (px >= 0).all(-1) & (px < self.side).all(-1)

        # paint piles up along both sides and where the brush is lifted
        side, lift = (np.abs(v) - 0.82) / 0.14, (u - 0.85) / 0.1
        pile = np.exp(-(side**2)) + 0.7 * np.exp(-(lift**2))
        body = (1 - v**6) * (1 + brush.bristle * 0.6 * bristles) * (0.8 - 0.2 * u)
        thick = brush.load * (body + 0.45 * pile)
        tint = color[:, None, None] * (1 + brush.streak * bristles)[..., None]

        ix, iy = px[keep, 0], px[keep, 1]
        paint = np.broadcast_to(tint, (n, m, k, 3))[keep]
        old = self.color[iy, ix]
        self.color[iy, ix] = old + brush.opacity * (paint - old)
        self.height[iy, ix] = 0.35 * self.height[iy, ix] + thick[keep]

    def light(self, relief: float = 0.25, gloss: float = 0.0, smooth: float = 0.8) -> None:
        """Light from the upper left rakes over the height of the paint."""
        gy, gx = np.gradient(blur(self.height, smooth))
        slope = np.clip(0.6 * gx + 0.8 * gy, -1.2, 1.2)
        self.color *= 1 + relief * slope[..., None]
        self.color += gloss * np.clip(slope - 0.15, 0, 1)[..., None] ** 2

    def finish(self) -> Image.Image:
        levels = (np.clip(self.color, 0, 1) * 255 + 0.5).astype(np.uint8)
        return Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def scatter(rng: Rng, spacing: float, where: Array | None = None) -> Array:
    """Jittered points (n, 2) in 0...1, `spacing` pixels apart, shuffled, kept by chance `where`."""
    count = math.ceil(SIDE / spacing) + 1
    cells = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
    at = ((cells + rng.random(cells.shape)) / count).astype(np.float32)
    at = rng.permutation(at)
    if where is not None:
        at = at[rng.random(len(at)) < lookup(where, at)]
    return at


def jitter(rng: Rng, color: Array, light: float, hue: float) -> Array:
    """Vary colours (n, 3) in lightness (a factor) and hue (per channel)."""
    factor = 1 + light * rng.standard_normal((len(color), 1), dtype=np.float32)
    varied: Array = color * factor + hue * rng.standard_normal(color.shape, dtype=np.float32)
    return np.clip(varied, 0.01, 1)


def detail(color: Array, reach: float) -> Array:
    """Where a scene changes within `reach` pixels, 0...1: that is where small strokes go."""
    change = np.abs(color - blur(color, reach)).sum(-1)
    busy: Array = np.clip(blur(change, reach / 2) * 6, 0, 1)
    return busy


def wander(rng: Rng, t: Array, bumps: int, octaves: int = 4) -> Array:
    """Noise along one coordinate `t` in 0...1: a crooked line, about -2...2."""
    line = noise(rng, bumps, octaves)[SIDE // 2]
    crooked: Array = np.interp(t, np.linspace(0, 1, SIDE), line).astype(np.float32)
    return crooked


# ------------------------------------------------------------------------------ panes


def voronoi(rng: Rng, u: Array, v: Array) -> Array:
    """Labels of the Voronoi cells of one jittered site per unit square."""
    size = 64  # sites repeat after this many squares
    sites = rng.random((size, size, 2), dtype=np.float32)
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    nearest: Array = np.full(u.shape, np.inf, dtype=np.float32)
    label: Array = np.zeros(u.shape, dtype=np.float32)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            cu, cv = iu + du, iv + dv
            site = sites[cu % size, cv % size]
            distance = np.hypot(cu + site[..., 0] - u, cv + site[..., 1] - v)
            label = np.where(distance < nearest, cu % size * size + cv % size, label)
            nearest = np.minimum(nearest, distance)
    return label.astype(np.float32)


def tint_of(label: Array) -> Array:
    """A number in 0...1 per label that looks random."""
    scrambled: Array = (np.sin(label * 12.9898 + 4.1) * 43758.545 % 1).astype(np.float32)
    return scrambled


def edges(label: Array) -> Array:
    """Lines where a label changes: 1/2 on the pixel on either side, else 0."""
    edge = np.zeros(label.shape, dtype=np.float32)
    beside, below = label[:, 1:] != label[:, :-1], label[1:] != label[:-1]
    edge[:, 1:] += beside
    edge[:, :-1] += beside
    edge[1:] += below
    edge[:-1] += below
    return np.minimum(edge, 1) / 2


# ------------------------------------------------------------------------------ pictures


def swirl(rng: Rng) -> Image.Image:
    """A windy night over hills: thick curling strokes in blue and gold, moon and stars."""
    s = Scene()
    x, y = s.x, s.y

    # the wind as a stream function: strokes follow its level lines, colours follow its value
    stream = 0.9 * (y + 0.05 * np.sin(5 * x + 1)) + 0.035 * noise(rng, 4, 3)
    for cx, cy, size, turn in (
        (0.33, 0.30, 0.15, 0.34),
        (0.55, 0.43, 0.10, -0.2),
        (0.05, 0.1, 0.1, 0.16),
    ):
        stream = stream + turn * np.exp(-((x - cx) ** 2 + 1.3 * (y - cy) ** 2) / size**2)
    band = 0.5 + 0.5 * np.sin(stream * 34 + noise(rng, 6, 3) * 0.5)
    deep = ramp(band, "#0b1a4e", "#153a8c", "#2c6bb8", "#6fb3cf")
    dawn = ramp(band, "#2d6fae", "#5fa9bd", "#b9d2a0", "#f3d673")
    s.put(np.ones_like(x), deep, along(stream))
    s.put(step(y + 0.05 * noise(rng, 5, 3), 0.3, 0.66) * 0.85, dawn)

    lamps = [(0.76, 0.2, 0.062)]
    lamps += [(0.12, 0.42, 0.016), (0.20, 0.09, 0.02), (0.47, 0.08, 0.017), (0.93, 0.42, 0.018)]
    lamps += [(0.60, 0.25, 0.012), (0.95, 0.07, 0.014), (0.40, 0.53, 0.012), (0.75, 0.46, 0.012)]
    for cx, cy, size in lamps:
        r = np.hypot(x - cx, y - cy) / size
        r = r * (1 + 0.02 * noise(rng, 6, 2))
        rings = 0.5 + 0.5 * np.cos(r * 5)
        halo = np.exp(-((r / 2.6) ** 2))
        glow = ramp(
            np.clip(halo + 0.22 * (rings - 0.5), 0, 1), "#1f55a0", "#4fa3b5", "#c9d98f", "#ffd84a"
        )
        s.put(step(halo, 0.02, 0.5) * (0.55 + 0.45 * rings), glow)
        s.flow = np.where((r < 3.2)[..., None], along(r), s.flow)
        s.put(step(r, 1.15, 0.95), ramp(np.clip(r, 0, 1), "#fff6cf", "#ffd23f", "#f09a1c"))

    shore = 0.72 + 0.012 * np.sin(7 * x)
    far = 0.64 - 0.03 * wander(rng, x, 3)
    near = 0.70 - 0.025 * wander(rng, x, 2) - 0.09 * step(x, 0.45, 0.0)
    folds = 0.5 + 0.5 * np.sin((y - far) * 130 + noise(rng, 7, 3) * 1.3)
    s.put(
        step(y - far, -0.003, 0.003), ramp(folds, "#14285c", "#22508a", "#4d86a8"), along(y - far)
    )
    folds = 0.5 + 0.5 * np.sin((y - near) * 150 + 9 * x + noise(rng, 7, 3) * 1.5)
    s.put(
        step(y - near, -0.003, 0.003),
        ramp(folds, "#0b2338", "#175052", "#3f8060", "#a6ae55"),
        along(y - near + 0.08 * np.sin(5 * x)),
    )
    # the lake carries the moon and the stars as broken columns of gold
    ripple = y + 0.012 * np.sin(16 * x + 40 * y) + 0.006 * noise(rng, 6, 3)
    waves = 0.5 + 0.5 * np.sin(ripple * 190 + noise(rng, 9, 3) * 1.5)
    lake = ramp(waves, "#0a1c4d", "#14418c", "#2f7fb5", "#7cc0cc")
    for cx, _, size in lamps:
        column = np.exp(-(((x - cx) / (size * (1.0 + 2.2 * (y - shore)))) ** 2))
        glitter = column * step(waves, 0.25, 0.6) * (1 if size > 0.05 else 0.7)
        lake += glitter[..., None] * (ramp(waves, "#e58a1c", "#ffc93a", "#fff0a8") - lake)
    s.put(step(y - shore, -0.003, 0.003), lake, along(ripple))
    # reeds in the lower corner lean with the wind
    bank = 0.97 - 0.22 * step(x, 0.42, 0.02) - 0.06 * step(x, 0.8, 1.0) + 0.012 * noise(rng, 60, 1)
    blades = np.clip(
        0.62 + 0.16 * noise(rng, 8, 2) + 0.22 * noise(rng, 70, 1) - (y - bank) * 1.6, 0, 1
    )
    lean = np.stack([0.55 + 0.25 * np.sin(9 * x + 4 * y), np.full_like(x, -0.85)], -1)
    s.put(
        step(y - bank, -0.003, 0.003),
        ramp(blades, "#23200f", "#5d4a14", "#c08a1e", "#f2d25a"),
        (lean / np.linalg.norm(lean, axis=-1, keepdims=True)).astype(np.float32),
    )

    canvas = Canvas(rgb("#173064"))
    for length, width, spacing, load in ((70, 18, 14, 1.0), (48, 12, 12, 1.3), (34, 8.5, 9.5, 1.5)):
        at = scatter(rng, spacing)
        color = jitter(rng, lookup(s.color, at), 0.14, 0.035)
        canvas.stroke(rng, replace(OIL, load=load), at, s.flow, color, length, width)
    at = scatter(rng, 4.6, detail(s.color, 5))
    color = jitter(rng, lookup(s.color, at), 0.14, 0.03)
    canvas.stroke(rng, replace(OIL, load=1.5), at, s.flow, color, 19, 5)
    canvas.light(0.34, 0.3)
    return canvas.finish()


def embers(rng: Rng) -> Image.Image:
    """The sun goes down over the sea: flames of cloud, in short thick strokes, crimson and plum."""
    s = Scene()
    x, y = s.x, s.y
    sun, horizon = (0.62, 0.50), 0.58
    r = np.hypot(x - sun[0], 1.2 * (y - sun[1]))

    # clouds rise from the sun like flames and bend with the wind
    angle = np.arctan2(y - sun[1], x - sun[0])
    flames = 5 * angle + 2.2 * np.log(r + 0.05) + 0.9 * noise(rng, 5, 3)
    band = 0.5 + 0.5 * np.sin(2 * flames)
    near = ramp(band, "#f6b33c", "#f0702a", "#d8372c", "#8e1f3a")
    far = ramp(band, "#b02a3a", "#6d2450", "#3a2158", "#251a40")
    s.put(np.ones_like(x), far, along(flames / 12))
    s.put(np.exp(-((r / 0.42) ** 2)), near)
    s.put(step(r, 0.085, 0.075), ramp(np.clip(r / 0.08, 0, 1), "#fff3b8", "#ffd75a", "#f9a02e"))

    ripple = y + 0.008 * np.sin(14 * x + 30 * y) + 0.008 * noise(rng, 7, 3)
    waves = 0.5 + 0.5 * np.sin(ripple * 150 + noise(rng, 9, 3) * 1.6)
    sea = ramp(waves, "#1b1638", "#43204f", "#7d2b4c", "#b8503f")
    glitter = np.exp(-(((x - sun[0]) / (0.05 + 0.35 * (y - horizon))) ** 2)) * step(waves, 0.3, 0.7)
    sea += glitter[..., None] * (ramp(waves, "#e2552c", "#f79a35", "#ffd978") - sea)
    s.put(step(y - horizon, -0.003, 0.003), sea, along(ripple))
    rocks = horizon + 0.30 - 0.26 * step(x, 0.5, 0.02) + 0.03 * wander(rng, x, 5)
    folds = 0.5 + 0.5 * np.sin((y - rocks) * 90 + 14 * x + noise(rng, 8, 3) * 2)
    s.put(
        step(y - rocks, -0.003, 0.003),
        ramp(folds, "#140f22", "#2a1a38", "#5c2a44", "#a2543f"),
        along(y - rocks + 0.2 * x),
    )

    canvas = Canvas(rgb("#4a2046"))
    for length, width, spacing, load in ((52, 17, 13, 1.2), (36, 11, 10.5, 1.5), (26, 8, 8.5, 1.7)):
        at = scatter(rng, spacing)
        color = jitter(rng, lookup(s.color, at), 0.16, 0.04)
        canvas.stroke(rng, replace(OIL, load=load), at, s.flow, color, length, width)
    canvas.light(0.4, 0.3)
    return canvas.finish()


def stained_glass(rng: Rng) -> Image.Image:
    """Sunrise over hills and a river in a leaded window: glowing panes, dark cames."""
    side = SIDE * SCALE
    x, y = grid(side)
    bend = 0.006
    wx, wy = x + bend * noise(rng, 5, 3, side), y + bend * noise(rng, 5, 3, side)

    # every region is cut into panes; `part` names the region, `pane` the pane
    radius, angle = np.hypot(wx - 0.5, wy - 0.42), np.arctan2(wy - 0.42, wx - 0.5)
    rings = np.array([0, 0.05, 0.115, 0.16, 0.215, 0.28, 0.355, 0.44, 0.535, 0.65, 1])
    ring = np.searchsorted(rings, radius)
    count = np.array([1, 1, 8, 16, 16, 24, 24, 32, 32, 40, 40])[ring]
    turn = rng.random(11)[ring]
    pane = ring * 100 + np.floor((angle / (2 * math.pi) + 0.5) * count + turn) % count
    part = np.where(radius < 0.115, 1, 0)

    drift = np.where(radius < 0.115, 0, 0.26 * (tint_of(pane) - 0.5))
    glow = ramp(
        np.clip(radius / 0.66 + drift, 0, 1),
        "#fff0a8",
        "#ffc233",
        "#f08a1c",
        "#d8452a",
        "#a82350",
        "#5a2a86",
        "#2a3f9e",
        "#14589e",
        "#1a86a8",
    )
    hues = glow
    lands = [
        (0.50 - 0.035 * wander(rng, x, 2), ("#4a3a9a", "#2f5fb8", "#3d86c8", "#6a4fae")),
        (0.59 - 0.03 * wander(rng, x, 2), ("#0d6f6a", "#1d8f7c", "#2aa58a", "#135f70")),
        (0.70 - 0.035 * wander(rng, x, 1), ("#2c8a3a", "#64a832", "#a5be36", "#1d6f3c")),
        (0.83 + 0.06 * np.sin(3 * x + 0.5), ("#8a1f3a", "#c23a2c", "#e06a22", "#a82848")),
    ]
    for index, (line, codes) in enumerate(lands, start=2):
        below = wy > line
        label = voronoi(rng, wx * (15 - index), (wy - line) * 24)
        pane = np.where(below, index * 10000 + label, pane)
        part = np.where(below, index, part)
        pick = ramp(tint_of(label), *codes)
        hues = np.where(below[..., None], pick, hues)
    middle = 0.5 + 0.16 * np.sin((wy - 0.5) * 9.5) * step(wy, 0.5, 0.8)
    river = (np.abs(wx - middle) < 0.012 + 0.24 * np.clip(wy - 0.56, 0, 1)) & (wy > lands[1][0])
    label = np.floor(np.clip(wy + 0.05 * np.sin((wx - middle) * 12), 0, 1) ** 0.5 * 44) + 7
    label += 500 * (wx > middle + 0.03 * np.sin(wy * 60))
    pane = np.where(river, 90000 + label, pane)
    part = np.where(river, 9, part)
    hues = np.where(
        river[..., None], ramp(tint_of(label), "#c9f0e6", "#5cc6dc", "#1f8fd0", "#1450a0"), hues
    )

    # two roses in the lower corners
    for number, (cx, cy, size) in enumerate(((0.15, 0.83, 0.12), (0.86, 0.80, 0.10))):
        r, a = np.hypot(wx - cx, wy - cy) / size, np.arctan2(wy - cy, wx - cx)
        r = r / (1 + 0.09 * np.cos(5 * a + number))
        flower = r < 1
        whorl = np.floor(r * 4.2)
        label = whorl * 10 + np.floor(
            (a / (2 * math.pi) + 0.5) * np.array([1, 3, 5, 7, 8])[whorl.clip(0, 4).astype(int)]
            + whorl * 0.4
        )
        pane = np.where(flower, 100000 + 1000 * number + label, pane)
        part = np.where(flower, 20 + number, part)
        warm = ramp(
            np.clip(r * 0.7 + 0.3 * tint_of(label), 0, 1),
            "#ffd95a",
            "#ff8a5c",
            "#e8355a",
            "#a3134e",
        )
        hues = np.where(flower[..., None], warm, hues)

    # glass: each pane has its own tone, streaks and seeds, and is brightest off centre
    tone = 0.66 + 0.5 * tint_of(pane * 3.7) + np.where((part == 1) | (part >= 20), 0.12, 0)
    streaks = 0.10 * np.sin(14 * noise(rng, 3, 3, side) + 60 * tint_of(pane) + 30 * (wx + wy))
    streaks = streaks + noise(rng, 90, 2, side) * 0.06
    color = hues * (tone + streaks)[..., None]
    color += (
        0.10
        * (tint_of(pane * 1.3) - 0.5)[..., None]
        * np.array([1.0, -0.2, -0.8], dtype=np.float32)
    )
    fine, bold = edges(pane), edges(part)
    depth = blur(fine, 16)
    color *= (1.22 - np.clip(depth * 7, 0, 0.62))[..., None]
    color += 0.10 * np.clip(noise(rng, 7, 3, side), 0, 2)[..., None] * color

    # lead: as wide as the blurred edge is above a level, thicker between the regions
    width = np.clip(1 + 0.25 * noise(rng, 10, 2, side), 0.72, 1.6)
    lead = np.maximum(blur(fine, 3.4) * width * 16, blur(bold, 6.0) * width * 30)
    mask = step(lead, 0.85, 1.15)[..., None]
    bead = np.sqrt(np.clip(lead - 0.9, 0, 2))
    gy, gx = np.gradient(blur(bead, 1.5))
    shine = np.clip(0.6 * gx + 0.8 * gy, -0.2, 0.3)[..., None]
    metal = rgb("#16151b") + 0.9 * shine + 0.02 * noise(rng, 150, 1, side)[..., None]
    return Canvas(color + mask * (metal - color)).finish()


def mosaic(rng: Rng) -> Image.Image:
    """Sun over a bay in glass tesserae: rows of small stones follow what they show."""
    side = SIDE * SCALE
    x, y = grid(side)
    wx, wy = x + 0.004 * noise(rng, 6, 2, side), y + 0.004 * noise(rng, 6, 2, side)
    size = 12.5 / SIDE

    radius, angle = np.hypot(wx - 0.62, wy - 0.34), np.arctan2(wy - 0.34, wx - 0.62)
    turns = np.maximum(np.round(2 * math.pi * (np.floor(radius / size) + 0.5)), 1)  # per ring
    u, v = (angle / (2 * math.pi) + 0.5) * turns * size, radius
    rays = 0.5 + 0.5 * np.cos(angle * 14)
    sky = ramp(
        np.clip(radius * 1.25 + 0.05 * noise(rng, 5, 3, side) - 0.06 * rays, 0, 1),
        "#fff2b8",
        "#ffcf4a",
        "#f7a13a",
        "#ec7a55",
        "#d98a9a",
        "#7fa8c4",
        "#3f86b8",
        "#2a5f9e",
    )
    sky = np.where(
        (radius < 0.105)[..., None], ramp(radius / 0.105, "#fff6d0", "#ffd84a", "#f2a51c"), sky
    )
    sky = np.where((np.abs(radius - 0.112) < size * 0.55)[..., None], rgb("#c8401f"), sky)
    color, part = sky, np.zeros_like(x)

    def lay(mask: Array, tints: Array, new_u: Array, new_v: Array, number: int) -> None:
        nonlocal color, part, u, v
        color = np.where(mask[..., None], tints, color)
        part = np.where(mask, number, part).astype(np.float32)
        u, v = np.where(mask, new_u, u), np.where(mask, new_v, v)

    hill = 0.50 - 0.05 * wander(rng, x, 2) - 0.16 * step(x, 0.5, 0.0)
    shade = np.clip((wy - hill) * 4 + 0.35 + 0.2 * noise(rng, 7, 3, side), 0, 1)
    lay(
        wy > hill,
        ramp(shade, "#d7c26a", "#8fa24a", "#4a7f52", "#2a5f5c", "#5a3f6a"),
        wx,
        wy - hill,
        1,
    )
    shore = 0.60
    swell = wy + 0.020 * np.sin(wx * 17 + wy * 11) + 0.010 * np.sin(wx * 41 - wy * 8)
    crest = 0.5 + 0.5 * np.sin(swell * 62)
    water = ramp(
        np.clip(0.75 * crest + 0.12 * noise(rng, 9, 3, side) + 0.1, 0, 1),
        "#123a6e",
        "#15609a",
        "#1f93ad",
        "#5cc3b8",
        "#f3efd4",
    )
    gold = np.exp(-(((wx - 0.62) / (0.05 + 0.28 * (wy - shore))) ** 2)) * step(crest, 0.3, 0.7)
    water = water + 0.85 * gold[..., None] * (ramp(crest, "#e2642c", "#ffb43a", "#fff0b0") - water)
    lay(wy > shore, water, wx, swell, 2)
    # a boat with a striped sail
    hull = (
        (np.abs(wx - 0.30) < 0.14 - 0.9 * (wy - 0.70).clip(0))
        & (wy > 0.70 + 0.5 * (wx - 0.30) ** 2)
        & (wy < 0.765)
    )
    sail = (wx > 0.30) & (wx < 0.30 + 0.17 * ((wy - 0.34) / 0.33)) & (wy > 0.36) & (wy < 0.675)
    jib = (wx < 0.288) & (wx > 0.288 - 0.12 * ((wy - 0.42) / 0.25)) & (wy > 0.43) & (wy < 0.675)
    stripe = np.floor((wy + 0.4 * (wx - 0.3) ** 2) / (size * 3)) % 2
    lay(sail, ramp(stripe, "#f6ead0", "#cf3d2c"), wx, wy + 0.6 * (wx - 0.3) ** 2, 3)
    lay(jib, ramp(stripe, "#f2d9a0", "#e58a2e"), wx, wy + 0.4 * (wx - 0.288) ** 2, 4)
    lay(
        hull,
        ramp(np.clip((wy - 0.70) / 0.06, 0, 1), "#e7b04a", "#8a3a22", "#4a2030"),
        wx,
        wy - 0.5 * (wx - 0.3) ** 2,
        5,
    )

    # tesserae: bricks in (u, v), each row shifted, each stone with its own width
    row = np.floor(v / size)
    column = np.floor(u / size + tint_of(row + 100 * part) * 7)
    stone = np.where(part == 0, column % turns, column) + 1000 * row + 97 * part
    bed = np.maximum(blur(edges(stone), 1.7), 0)
    joint = step(bed, 0.24, 0.10)
    # a stone has one colour: the average of the scene under it
    keys, inverse = np.unique(stone, return_inverse=True)
    weight = np.bincount(inverse.ravel())
    mean = np.stack(
        [np.bincount(inverse.ravel(), color[..., i].ravel()) / weight for i in range(3)], -1
    )
    mean = jitter(rng, mean.astype(np.float32), 0.13, 0.035)
    tilt = rng.normal(0, 1, (len(keys), 2)).astype(np.float32)
    face = mean[inverse.reshape(stone.shape)]
    facing = tilt[inverse.reshape(stone.shape)] @ np.array([0.05, 0.06], dtype=np.float32)
    face = face * (1 + facing + 0.05 * noise(rng, 110, 3, side))[..., None]
    grout = rgb("#4b423c") * (1 + 0.14 * noise(rng, 150, 2, side))[..., None]
    canvas = Canvas(grout + joint[..., None] * (face - grout))
    canvas.height = 2.6 * blur(joint, 2.2)
    canvas.light(0.55, 0.35)
    return canvas.finish()


def woodcut(rng: Rng) -> Image.Image:
    """A mountain, a red sun and rolling waves cut in wood: lines that swell with the shade."""
    side = SIDE * SCALE
    x, y = grid(side)
    nib = noise(rng, 60, 2, side)
    ink: Array = np.zeros_like(x)
    paint: Array = np.broadcast_to(rgb("#efe2c4"), (side, side, 3))

    def cut(level: Array, period: float, shade: float | Array) -> Array:
        """Lines that follow a level field, `period` pixels apart, as wide as `shade` says."""
        wave = 0.5 + 0.5 * np.cos(2 * math.pi * (level * SIDE / period + 0.05 * nib))
        return step(shade + 0.06 * nib - wave, -0.06, 0.06)

    def block(mask: Array, lines: Array, color: Array) -> None:
        nonlocal ink, paint
        ink = np.where(mask, lines, ink)
        paint = np.where(mask[..., None], color, paint)

    # the sky is darkest at the top; the sun has a ring of beams
    clouds = noise(rng, 4, 3, side)
    swirls = 0.015 * np.sin(11 * x + 4 * y) + 0.012 * noise(rng, 3, 3, side)
    shade = np.clip(0.62 - 0.95 * np.abs(y - 0.02) ** 0.8 + 0.18 * clouds, 0, 0.85)
    haze = step(y, 0.6, 0.0)[..., None] * 0.75
    sky = paint + haze * (rgb("#5f9aa6") - paint)
    block(y >= 0, cut(y + swirls, 9, shade), sky)
    sun, angle = np.hypot(x - 0.64, y - 0.27), np.arctan2(y - 0.27, x - 0.64)
    shade = np.clip(0.62 - (sun - 0.15) * 2.6 - 0.25 * step(sun, 0.2, 0.15), 0, 1)
    beams = cut(angle / (2 * math.pi) * 72 / SIDE, 1, shade)
    block(sun < 0.33, beams, sky)
    block(sun < 0.30, beams, sky + 0.55 * (rgb("#f0a63a") - sky))
    block(sun < 0.15, cut(sun, 13, 0.05), rgb("#d6412b"))

    # the mountain: two flanks meet in a crooked ridge, snow on top
    gullies = noise(rng, 9, 3, side)
    below = y - 0.20 - 0.50 * (1 - np.exp(-np.abs(x - 0.33) / 0.22)) - 0.010 * wander(rng, x, 8)
    spine = 0.31 + 0.10 * y + 0.022 * np.sin((y - 0.2) * 26) + 0.02 * wander(rng, y, 7)
    dark = step(x - spine, -0.01, 0.015)
    flank = 0.9 * (x - 0.33) / (0.45 + 1.6 * (y - 0.15).clip(0)) + 0.10 * y + 0.007 * gullies
    rock = np.clip(0.10 + 0.55 * dark + 0.22 * gullies + 0.25 * below, 0, 0.9)
    snow = y < 0.33 + 0.035 * np.sin(x * 70 + gullies) + 0.02 * gullies
    shade = np.where(snow, np.clip(0.5 * dark + 0.1 * gullies - 0.05, 0, 0.8), rock)
    lines = np.maximum(cut(flank, 8.5, shade), step(below, 0.006, 0.003))
    block(below > 0, lines, np.where(snow[..., None], rgb("#f4ead2"), rgb("#7f9a84")))

    # pines along the shore
    tree = np.abs((x * 17 + 0.3 * np.sin(x * 31)) % 1 - 0.5)  # 0 at a stem, 1/2 between two
    tips = 0.54 + 0.09 * tree + 0.03 * np.sin(x * 9) + 0.012 * np.sin(y * 330)
    block(y > tips, cut(y + 0.02 * tree, 7, 0.74 + 0.1 * gullies), rgb("#39685e"))

    # waves: each is a row of scales with a rim of foam, nearer rows over farther ones
    for row in range(7):
        span = 0.16 + 0.045 * row
        phase = (x / span + 0.37 * row + 0.1 * np.sin(7 * x + row)) % 1 - 0.5
        lean = phase + 0.10 * np.sin(phase * 2 * math.pi)
        crest = span * 0.26 * np.cos(lean * math.pi).clip(0) ** 1.5 - 0.006 * np.sin(x * 90 + row)
        below = y - 0.625 - 0.058 * row + crest
        foam = below < 0.016 + 0.007 * np.sin(x * 130 + 2 * np.sin(x * 57)) + 0.002 * row
        curl = 0.8 * below + span * (0.08 * np.sin(lean * 2 * math.pi) + 0.10 * np.abs(lean))
        shade = np.clip(0.22 + 2.2 * below + 0.07 * nib + 0.2 * np.sin(lean * 6), 0.08, 0.86)
        lines = np.where(foam, cut(below, 6, 0.12), cut(curl, 8 + 0.5 * row, shade))
        blue = ramp(np.clip(below * 5, 0, 1), "#4d93a6", "#2a6088", "#1f3f6e")
        color = np.where(foam[..., None], rgb("#f6eedb"), blue)
        block(below > 0, np.maximum(lines, step(below, 0.0042, 0.0022)), color)

    # printing: colour blocks out of register, the grain of the plank, ink that misses
    grain = np.sin((y + 0.012 * noise(rng, 3, 3, side)) * 900 + 3 * noise(rng, 4, 3, side))
    paint = np.pad(paint, ((4, 0), (0, 4), (0, 0)), mode="edge")[:-4, 4:]
    paint = paint * (1 + 0.05 * grain + 0.035 * nib)[..., None]
    ink = ink * (1 - 0.10 * step(grain, 0.7, 0.9) - 0.4 * step(noise(rng, 200, 1, side), 1.6, 2.4))
    paper = 1 + 0.025 * noise(rng, 120, 3, side)
    print_ = paint + ink[..., None] * (rgb("#1b1c2b") - paint)
    return Canvas(print_ * paper[..., None]).finish()


def ink(rng: Rng) -> Image.Image:
    """An old oak over fields, drawn with a pen: hatching that follows and darkens each form."""
    s = Scene()
    x, y = s.x, s.y
    tone = 0.12 + 0.30 * step(y, 0.5, 0.0) * np.clip(0.6 + 0.5 * noise(rng, 3, 3), 0, 1)
    s.flow = along(y + 0.05 * np.sin(4 * x + 1) + 0.012 * noise(rng, 3, 2))
    outline = np.zeros_like(x)

    def lay(mask: Array, shade: Array, flow: Array) -> None:
        nonlocal tone, outline
        tone = np.where(mask > 0.5, shade, tone)
        s.flow = np.where(mask[..., None] > 0.5, flow, s.flow)
        outline = np.maximum(outline * (mask < 0.5), 2 * edges(mask))

    # clouds: piled circles, shaded below
    for heap_x, heap_y, heap in ((0.80, 0.17, 0.075), (0.66, 0.33, 0.035), (0.93, 0.36, 0.04)):
        for _ in range(22):
            size = heap * rng.uniform(0.25, 0.75)
            cx, cy = heap_x + heap * rng.normal(0, 0.9), heap_y - heap * abs(rng.normal(0, 0.4))
            r = np.hypot(x - cx, (y - cy) * 1.2) / size + 0.13 * noise(rng, 34, 2)
            shade = np.clip(0.34 * (y - cy + 0.6 * (x - cx)) / size - 0.03, 0, 0.5)
            lay((r < 1).astype(np.float32), shade, along(r))

    outline *= 0.35  # clouds have faint outlines

    far = 0.52 - 0.028 * wander(rng, x, 4)
    face = noise(rng, 7, 3)
    lay(
        (y > far).astype(np.float32),
        np.clip(0.30 + 0.28 * face, 0.08, 0.7),
        along(x * 0.8 + 0.5 * y + 0.05 * face),
    )
    for number, base in enumerate((0.57, 0.63, 0.71)):
        line = base - 0.018 * wander(rng, x, 2) + 0.05 * np.sin(2.5 * x + 2.2 * number)
        furrow = noise(rng, 4, 2)
        plot = np.floor((x + (0.5 - number) * 0.5 * (y - line)) * (4 + number) + number * 0.4)
        shade = (
            0.14
            + 0.42 * tint_of(plot + 10 * number)
            + 0.9 * np.clip(0.03 - (y - line), 0, 1) * 10 * 0.3
        )
        way = along(
            y
            - line
            + np.where(plot % 2 == 0, 0.9, -0.35) * x * (0.6 + number * 0.2)
            + 0.01 * furrow
        )
        lay((y > line).astype(np.float32), np.clip(shade, 0.05, 0.8), way)
        # hedges and copses along the line of each field
        for _ in range(26):
            cx, size = rng.random(), rng.uniform(0.008, 0.020) * (1 + 0.5 * number)
            cy = float(line[0, int(cx * SIDE)]) - size * 0.4
            r = np.hypot(x - cx, y - cy) / size + 0.16 * noise(rng, 60, 2)
            shade = np.clip(0.5 + 0.5 * (x - cx + y - cy) / size, 0.1, 1)
            lay((r < 1).astype(np.float32), shade, along(r))
    ground = 0.80 + 0.05 * np.sin(3 * x + 0.4)
    blade = np.stack([0.35 * np.sin(11 * x + 3), np.full_like(x, -1.0)], -1).astype(np.float32)
    lay(
        (y > ground).astype(np.float32),
        np.clip(0.30 + 0.20 * noise(rng, 6, 3) + 0.8 * (y - ground), 0.1, 0.95),
        blade,
    )

    # the oak: trunk and boughs as thick curves, then clumps of leaves lit from the upper left
    def bough(points: list[tuple[float, float]], thick: tuple[float, float]) -> None:
        t = np.linspace(0, 1, 60)
        knots = np.array(points)
        at = np.linspace(0, 1, len(knots))
        best, side, size = np.full_like(x, 9), np.zeros_like(x), np.full_like(x, thick[0])
        for px, py, w in zip(
            np.interp(t, at, knots[:, 0]),
            np.interp(t, at, knots[:, 1]),
            np.interp(t, [0, 1], thick),
            strict=True,
        ):
            d = np.hypot(x - px, y - py)
            near = d / w < best
            best, side, size = (
                np.where(near, d / w, best),
                np.where(near, x - px, side),
                np.where(near, w, size),
            )
        gnarl = 0.12 * noise(rng, 26, 2)
        lay(
            (best + gnarl < 1).astype(np.float32),
            np.clip(0.5 + 0.55 * side / size, 0.08, 1).astype(np.float32),
            along((side + 0.006 * gnarl).astype(np.float32)),
        )

    bough([(0.34, 0.93), (0.335, 0.75), (0.35, 0.6), (0.36, 0.42)], (0.052, 0.028))
    bough([(0.345, 0.62), (0.28, 0.5), (0.19, 0.44)], (0.026, 0.012))
    bough([(0.355, 0.60), (0.43, 0.51), (0.50, 0.44)], (0.026, 0.012))
    bough([(0.28, 0.955), (0.34, 0.86), (0.40, 0.955)], (0.02, 0.03))
    clumps = [
        (0.36 + 0.30 * a, 0.33 + 0.19 * b)
        for a, b in rng.uniform(-1, 1, (90, 2))
        if a * a + b * b < 1
    ]
    for cx, cy in sorted(clumps, key=lambda c: -abs(c[1] - 0.30) - 0.4 * c[1]):
        size = rng.uniform(0.045, 0.075)
        r = np.hypot(x - cx, y - cy) / size + 0.14 * noise(rng, 30, 2)
        light = ((x - cx) + 1.2 * (y - cy)) / size
        shade = np.clip(0.38 + 0.40 * light + 0.7 * (cy - 0.33) + 0.35 * (cx - 0.36), 0.10, 1)
        lay(
            (r < 1).astype(np.float32),
            shade.astype(np.float32),
            along(r + 0.12 * noise(rng, 40, 1)),
        )

    paper = (
        rgb("#f1e4c8")
        * (1 + 0.02 * noise(rng, 200, 2, SIDE * SCALE) + 0.015 * noise(rng, 3, 3, SIDE * SCALE))[
            ..., None
        ]
    )
    canvas = Canvas(paper - 0.10 * resize(tone, SIDE * SCALE)[..., None] * rgb("#5a6a8a"))
    across = np.stack([-s.flow[..., 1], s.flow[..., 0]], -1)
    turned = (s.flow * 0.75 + across * 0.66).astype(np.float32)
    sepia = rgb("#2a2119")
    for flow, low, high, length, width, spacing in (
        (s.flow, 0.0, 0.40, 26, 1.3, 6.2),
        (turned, 0.25, 0.75, 20, 1.2, 6.0),
        (across, 0.45, 1.0, 15, 1.2, 5.6),
        (s.flow, 0.6, 1.1, 14, 1.7, 5.0),
    ):
        at = scatter(rng, spacing, step(tone, low, high) * 0.9)
        n = len(at)
        weight = width * (0.7 + 0.7 * lookup(tone, at)) * rng.uniform(0.75, 1.2, n)
        canvas.stroke(
            rng,
            PEN,
            at,
            flow,
            jitter(rng, np.tile(sepia, (n, 1)), 0.25, 0.015),
            length * rng.uniform(0.5, 1.4, n).astype(np.float32),
            weight,
        )
    at = scatter(rng, 2.2, np.clip(outline * 0.8, 0, 1))
    lengths, weights = rng.uniform(5.5, 14, len(at)), rng.uniform(1.0, 1.7, len(at))
    canvas.stroke(rng, PEN, at, along(blur(outline, 3)), sepia, lengths, weights)
    return canvas.finish()


def palette_knife(rng: Rng) -> Image.Image:
    """Birches by the water in autumn: slabs of red and teal laid on with a knife."""
    s = Scene()
    x, y = s.x, s.y
    water = 0.66
    up = np.where(y < water, y, 2 * water - y)  # the water mirrors what stands above it
    sway = np.where(y < water, 0, 0.012 * np.sin(y * 90) + 0.01 * noise(rng, 12, 2))
    mx = (x + sway).astype(np.float32)

    sky = ramp(
        np.clip(up / water + 0.10 * noise(rng, 3, 3), 0, 1),
        "#1f6f78",
        "#4fa8a0",
        "#a8d0b4",
        "#f6e3b0",
        "#f7b85c",
    )
    s.color = sky
    leaves = noise(rng, 4, 4)
    mirrored = lookup(leaves, np.stack([mx, up], -1).astype(np.float32))
    crown = step(mirrored + 1.9 * (up - 0.18) + 0.9 * np.abs(mx - 0.5) - 0.35, -0.05, 0.1)
    hue = np.clip(
        0.5 + 0.26 * lookup(noise(rng, 6, 3), np.stack([mx, up], -1).astype(np.float32)), 0, 1
    )
    s.put(
        crown * step(up, 0.03, 0.16),
        ramp(hue, "#5a1222", "#a81e24", "#d9402a", "#ee7a24", "#f9b934"),
    )
    bank = step(up, water - 0.10 + 0.02 * np.sin(9 * x), water - 0.05)
    s.put(bank, ramp(hue, "#2a1430", "#5a1c34", "#8f2f2a", "#c8642a"))
    angle = 0.9 * noise(rng, 5, 2) + 0.8
    s.flow = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    # the water: the mirror image, cooler and darker, in level strokes
    wet = step(y, water - 0.004, water + 0.004)
    cool = s.color * 0.78 + 0.22 * ramp(
        np.clip((y - water) * 3.2, 0, 1), "#2f9a98", "#135a6c", "#0c3348"
    )
    s.put(wet, cool.astype(np.float32), along(y + 0.012 * np.sin(11 * x)))

    canvas = Canvas(rgb("#4a1a26"))

    def knife(
        at: Array, color: Array, flow: Array, length: float, width: float, load: float
    ) -> None:
        lengths, widths = rng.uniform(0.6, 1.3, (2, len(at))) * [[length], [width]]
        canvas.stroke(rng, replace(KNIFE, load=load), at, flow, color, lengths, widths)

    for length, width, spacing, load in ((56, 26, 13, 1.2), (36, 17, 9, 1.6), (24, 11, 7.5, 1.9)):
        at = scatter(rng, spacing)
        knife(at, jitter(rng, lookup(s.color, at), 0.15, 0.05), s.flow, length, width, load)

    # trunks, then their broken reflections
    upright = np.zeros_like(s.flow)
    upright[..., 1] = 1
    upright[..., 0] = 0.12 * np.sin(6 * y + 9 * x)
    level = along(y + 0.006 * np.sin(30 * x))
    for cx, foot, wide in (
        (0.13, 0.70, 20),
        (0.22, 0.67, 13),
        (0.47, 0.665, 11),
        (0.70, 0.69, 18),
        (0.79, 0.67, 12),
        (0.93, 0.71, 22),
    ):
        t = rng.random(150).astype(np.float32)
        lean = 0.03 * np.sin(9 * cx + 3 * t) + (0.5 - cx) * 0.05 * (1 - t)
        side = rng.normal(0, 0.3, 150).astype(np.float32)
        at = np.stack([cx + lean + side * wide / SIDE, t * foot], -1).astype(np.float32)
        light = np.clip(0.55 - 0.75 * side + 0.1 * rng.standard_normal(150), 0, 1).astype(
            np.float32
        )
        knife(
            at,
            jitter(rng, ramp(light, "#3f4a63", "#9aa6ad", "#efe6d2", "#fff8e6"), 0.05, 0.02),
            upright,
            26,
            wide * 0.5,
            1.8,
        )
        scars = rng.random(22) < 0.8
        knife(
            at[:22][scars],
            np.tile(rgb("#231a26"), (int(scars.sum()), 1)),
            level,
            wide * 0.8,
            4.5,
            1.2,
        )
        at = np.stack(
            [cx + lean + rng.normal(0, 0.5, 150) * wide / SIDE, 2 * foot - t * foot], -1
        ).astype(np.float32)
        at = at[(at[:, 1] < 1) & (rng.random(150) < 0.75)]
        dim = ramp(rng.random(len(at)).astype(np.float32), "#4a6a78", "#a9b8ae", "#e8dcc0")
        knife(at, dim, level, wide * 1.5, 6, 1.4)
    at = scatter(rng, 9, step(crown * (y < water), 0.2, 0.9) * 0.5)
    color = jitter(rng, lookup(s.color, at) * 1.15, 0.18, 0.05)
    knife(at, color, s.flow, 17, 9, 2.0)
    at = scatter(rng, 15, step(y, water, water + 0.02) * 0.3)
    knife(at, jitter(rng, np.tile(rgb("#f2b45a"), (len(at), 1)), 0.15, 0.06), level, 24, 4.5, 1.6)
    canvas.light(0.42, 0.35, 1.0)
    return canvas.finish()


def watercolor(rng: Rng) -> Image.Image:
    """Poppies before misty mountains: washes that pool at their edges on rough paper."""
    side = SIDE * SCALE
    x, y = grid(side)
    tooth = noise(rng, 220, 2, side)
    paper = rgb("#faf5e8") * (1 + 0.016 * tooth)[..., None]
    logs = np.log(paper)

    def wash(
        mask: Array, pigment: str | Array, strength: float, rim: float = 0.8, width: float = 5
    ) -> None:
        """Lay a transparent wash: light is absorbed by the pigment, which gathers at the rim."""
        nonlocal logs
        soft = blur(mask, 1.2)
        pool = np.clip(soft - blur(mask, width), 0, 1) * 2 * rim
        flow = 0.85 + 0.28 * noise(rng, 5, 4, side)
        grain = 1 + 0.20 * tooth + 0.12 * noise(rng, 60, 2, side)
        amount = strength * np.clip(soft * flow * grain + pool * soft, 0, 3)
        absorb = np.log(np.clip(rgb(pigment) if isinstance(pigment, str) else pigment, 0.02, 1))
        logs = logs + amount[..., None] * absorb

    def marks(at: Array, flow: Array, length: float, width: float) -> Array:
        """The mask that wet brush strokes leave."""
        sheet = Canvas(rgb("#000000"))
        lengths, widths = rng.uniform(0.5, 1.4, (2, len(at))) * [[length], [width]]
        sheet.stroke(rng, WET, at, flow, rgb("#ffffff"), lengths, widths)
        return sheet.color[..., 0]

    ragged = noise(rng, 12, 4, side)
    sun = np.hypot(x - 0.70, y - 0.15)
    wash(
        step(y + 0.02 * ragged, 0.62, 0.4),
        ramp(np.clip(y * 2.2 + 0.08 * ragged, 0, 1), "#f3e3c8", "#fbe3b4", "#f9cfa8"),
        0.6,
    )
    sky = np.clip(0.8 + 0.4 * noise(rng, 3, 4, side), 0.3, 1) * step(y, 0.5, 0.1)
    sky *= step(sun + 0.012 * ragged, 0.075, 0.13)  # paper is left free around the sun
    blues = ramp(np.clip(y * 2.1 + 0.08 * ragged, 0, 1), "#4f86c6", "#86b0d9", "#dfb6c6", "#f2c39a")
    wash(step(sky, 0.1, 0.55), blues, 0.85, 0.5)
    heaps = noise(rng, 4, 4, side) - 12 * np.abs(y - 0.19 - 0.04 * np.sin(8 * x)) + 0.3
    clouds = step(heaps, 0.10, 0.2) * step(sun, 0.08, 0.10)
    wash(clouds, "#8a8fc4", 0.35, 1.0)
    wash(step(sun + 0.003 * ragged, 0.064, 0.059), "#f7a13f", 0.9, 0.9)
    wash(step(sun + 0.02 * ragged, 0.2, 0.05), "#fbd38a", 0.35, 0.0)
    tints = ("#a9b4d6", "#8496c4", "#5c7fae", "#3f7088", "#2f6a5c")
    for number, pigment in enumerate(tints):
        base = 0.34 + 0.075 * number
        line = wander(rng, x, 3 + number, 5) * (0.06 - 0.006 * number)
        below = y - base - line
        body = step(below + 0.002 * ragged, -0.0015, 0.0015) * step(below, 0.17, 0.01)
        wash(body, pigment, 0.62 + 0.08 * number, 0.9)
        trees = scatter(
            rng, 9 - number, step(np.abs(resize(below, SIDE) - 0.02), 0.03, 0.01) * 0.45
        )
        if number > 1:
            stems = np.zeros((SIDE, SIDE, 2), dtype=np.float32)
            stems[..., 1] = 1
            wash(marks(trees, stems, 8 + 5 * number, 2.5 + number), pigment, 0.55, 0.8, 3)

    # the meadow: glazes of leaves, from light to dark
    mx, my = grid()
    meadow = step(my, 0.66, 0.74)
    wash(
        step(y + 0.012 * ragged, 0.655, 0.685),
        ramp(np.clip((y - 0.66) * 3, 0, 1), "#d8dc8a", "#a9c46a", "#5f9a5c"),
        0.8,
        0.8,
    )
    lean = 0.5 * noise(rng, 6, 2)
    blades = np.stack([lean, np.full_like(lean, -1)], -1)
    blades /= np.linalg.norm(blades, axis=-1, keepdims=True)
    for pigment, length, width, spacing, amount in (
        ("#c3d45a", 50, 10, 18, 0.5),
        ("#86b45c", 54, 8, 17, 0.6),
        ("#4f9a6a", 48, 6, 17, 0.6),
        ("#2f6a74", 42, 4.5, 21, 0.7),
    ):
        wash(
            marks(scatter(rng, spacing, meadow * 0.7), blades.astype(np.float32), length, width),
            pigment,
            amount,
            0.9,
            3,
        )

    # poppies: three petals' glazes and a dark heart each
    flowers = [
        (0.14, 0.72, 0.062),
        (0.30, 0.83, 0.085),
        (0.52, 0.71, 0.055),
        (0.66, 0.86, 0.095),
        (0.86, 0.75, 0.07),
        (0.45, 0.93, 0.07),
        (0.08, 0.93, 0.075),
        (0.92, 0.95, 0.07),
        (0.74, 0.69, 0.035),
        (0.39, 0.70, 0.032),
        (0.23, 0.67, 0.028),
        (0.97, 0.66, 0.03),
    ]
    lift = np.zeros_like(x)
    shapes: list[Array] = [np.zeros_like(x) for _ in range(3)]
    hearts = np.zeros_like(x)
    for cx, cy, size in flowers:
        tilt = rng.uniform(0, 2)
        for glaze in range(3):
            ox, oy = rng.normal(0, 0.14 * size, 2)
            dx, dy = x - cx - ox, (y - cy - oy) * 1.25
            a = np.arctan2(dy, dx)
            r = (
                np.hypot(dx, dy)
                / size
                / (0.80 + 0.10 * np.cos(3 * a + tilt + glaze) + 0.05 * np.cos(7 * a - tilt))
            )
            petal = step(r + 0.05 * ragged, 1.0 - 0.16 * glaze + 0.02, 1.0 - 0.16 * glaze - 0.02)
            shapes[glaze] = np.maximum(shapes[glaze], petal)
            lift = np.maximum(lift, petal)
        hearts = np.maximum(
            hearts, step(np.hypot(x - cx, (y - cy) * 1.2) / size + 0.08 * ragged, 0.24, 0.18)
        )
    clean = blur(lift, 1.5)[..., None] * 0.93  # masked paper stays light under the flowers
    logs = logs + clean * (np.log(paper) - logs)
    for shape, pigment, amount in zip(
        shapes, ("#f47a48", "#e8452f", "#c81e3a"), (0.95, 0.7, 0.6), strict=True
    ):
        wash(shape, pigment, amount, 1.2, 7)
    # veins run out of the hearts
    nearest = np.argmin([np.hypot(mx - cx, my - cy) / size for cx, cy, size in flowers], axis=0)
    middles = np.array(flowers, dtype=np.float32)[nearest]
    veins = np.stack([mx, my], -1) - middles[..., :2]
    veins /= np.maximum(np.linalg.norm(veins, axis=-1, keepdims=True), 1e-6)
    inner = np.hypot(mx - middles[..., 0], (my - middles[..., 1]) * 1.25) / middles[..., 2]
    at = scatter(rng, 9, step(inner, 0.8, 0.5) * 0.8)
    wash(marks(at, veins.astype(np.float32), 22, 3.5), "#c8283a", 0.55, 1.0, 3)
    wash(hearts, "#3a2748", 1.4, 0.6)
    at = scatter(rng, 5, step(inner, 0.42, 0.34) * step(inner, 0.2, 0.3) * 0.6)
    wash(marks(at, veins.astype(np.float32), 5, 2.6), "#2a1f3a", 1.0, 0.8, 3)
    for pigment, spacing in (("#d8402f", 60), ("#4f7fae", 50), ("#e0a02f", 50)):
        wash(
            marks(rng.random((spacing, 2)).astype(np.float32), blades.astype(np.float32), 4, 4),
            pigment,
            0.6,
            1.0,
            3,
        )

    gy, gx = np.gradient(blur(tooth, 1.0))
    rough = 1 + 0.25 * np.clip(0.6 * gx + 0.8 * gy, -0.4, 0.4)
    return Canvas(np.exp(logs) * rough[..., None]).finish()


PICTURES: dict[str, Callable[[Rng], Image.Image]] = {
    "swirl": swirl,
    "stained_glass": stained_glass,
    "mosaic": mosaic,
    "woodcut": woodcut,
    "ink": ink,
    "palette_knife": palette_knife,
    "watercolor": watercolor,
    "embers": embers,
}


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG at the best quality, up to 92, that keeps it within `KILOBYTES`."""
    for quality in range(92, 60, -2):
        picture.save(path, quality=quality, optimize=True, subsampling=0)
        if path.stat().st_size <= KILOBYTES * 1024:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint the bundled style pictures.")
    default = Path(__file__).parents[1] / "faststy" / "assets" / "styles"
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(PICTURES))
    if unknown:
        parser.error(f"no picture named {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        # a seed per picture, so that adding one changes no other
        rng = np.random.default_rng(list(name.encode()))
        save(PICTURES[name](rng), options.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
