"""Draws paintings, so colorizers can also be trained without a download.

``MATERIALS`` lists the colors of each material, from shade to light, and the strokes that render it. A scene lays
materials and tones on a canvas, back to front; ``brush`` paints any canvas. Hue follows from material and tone, and
a material shows in its form, place and strokes, so lightness alone reveals most of the color.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from datamodules.demo.draw_once import ToDraw, draw_once

NUM_IMAGES = {"training_set": 600, "validation_set": 100}
SHORT_SIDE = 256  # pixels
LONG_SIDE = 256, 360  # minimum, maximum
NUM_TONES = 256  # from a material's deepest shade to its brightest light
NUM_COATS = 3  # layers of strokes; all but the first have gaps that show the coat below
NUM_STROKES = 4096  # distinct strokes before they repeat; a power of two

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Strokes = NDArray[np.intp]  # (H, W), which of the NUM_STROKES shows
Pair = tuple[float, float]  # rightward, downward


@dataclass(frozen=True)
class Material:
    """How something looks and how it is painted."""

    colors: tuple[str, ...]  # from shade to light, at evenly spaced tones
    length: float  # of a stroke, in pixels
    width: float
    angle: float = 0.0  # of a stroke, in degrees clockwise from horizontal
    contrast: float = 0.1  # standard deviation of tone from stroke to stroke


MATERIALS = {
    "sky": Material(("#476594", "#7a9ec1", "#b9d0dc", "#f3e5c6"), 34, 9, 16, 0.04),
    "dusk": Material(("#363a5e", "#7d617d", "#d29167", "#f7e2a8"), 34, 9, -12, 0.04),
    "cloud": Material(("#6f84b4", "#c4c4d8", "#fff4dc"), 13, 9, -30, 0.12),
    "mountain": Material(("#314062", "#5f779c", "#a4b4cb"), 24, 7, 60, 0.12),
    "sea": Material(("#193b4b", "#39777d", "#78b3ab", "#f3eccd"), 20, 4, 0, 0.16),
    "dusk sea": Material(("#21243c", "#5c4f6a", "#c38c68", "#f6e2af"), 20, 4, 0, 0.16),
    "meadow": Material(("#3d4f2b", "#788b4f", "#bfc478"), 9, 4, 75, 0.16),
    "wheat": Material(("#7a5830", "#c8a163", "#efd998"), 18, 4, 65, 0.2),
    "sand": Material(("#8a6b4d", "#cdae86", "#f1dfc0"), 30, 7, 8, 0.05),
    "foliage": Material(("#112111", "#365729", "#8fa552"), 7, 6, 40, 0.3),
    "autumn": Material(("#472517", "#ad6a34", "#e7bd68"), 7, 6, 40, 0.25),
    "bark": Material(("#20100a", "#6a4020", "#b07c44"), 14, 3, 88, 0.15),
    "wall": Material(("#9a6c3a", "#e6bd79", "#fdf0d2"), 12, 7, 90, 0.05),
    "roof": Material(("#5e2218", "#a94c33", "#d6855d"), 8, 4, 30, 0.14),
    "shadow": Material(("#140c0c", "#3c2820"), 5, 3),
    "backdrop": Material(("#1d0e09", "#52331d", "#916135"), 28, 12, 50, 0.14),
    "skin": Material(("#491d12", "#ab5e39", "#e6a979", "#fde2c3"), 7, 4, 60, 0.04),
    "lips": Material(("#6c1414", "#cc4438"), 5, 3),
    "hair": Material(("#120806", "#40200e", "#8a5020"), 13, 3, 70, 0.2),
    "velvet": Material(("#330e0f", "#923430", "#d2715d"), 30, 7, 105, 0.12),
    "cobalt": Material(("#181f48", "#415a98", "#9ab4d6", "#ffffff"), 12, 5, 80, 0.05),
    "linen": Material(("#7c84a0", "#d8d4d0", "#fffaec"), 14, 5, 35, 0.1),
    "plaster": Material(("#26342c", "#60745c", "#a4ac80"), 20, 12, -40, 0.12),
    "wood": Material(("#32190b", "#865027", "#ca9252"), 40, 5, 0, 0.14),
    "lemon": Material(("#89712d", "#ebc856", "#fdf3b2"), 6, 5, 30, 0.06),
    "orange": Material(("#713418", "#d6843c", "#f6ca84"), 6, 5, 30, 0.06),
    "apple": Material(("#401111", "#a5352c", "#e28667"), 9, 4, 80, 0.1),
    "plum": Material(("#130919", "#44214d", "#8e7aa7"), 10, 8, 50, 0.06),
}
NAMES = list(MATERIALS)


def ramp(colors: tuple[str, ...]) -> Array:
    """(NUM_TONES, 3), in [0, 1]."""
    stops = np.array([ImageColor.getrgb(color) for color in colors]) / 255
    tones = np.linspace(0, len(colors) - 1, NUM_TONES)
    return np.stack([np.interp(tones, np.arange(len(colors)), channel) for channel in stops.T], 1)


RAMPS = np.stack([ramp(material.colors) for material in MATERIALS.values()]).astype(np.float32)
STROKES = np.array([(m.length, m.width, np.radians(m.angle), m.contrast) for m in MATERIALS.values()], np.float32).T


@dataclass
class Canvas:
    """What to paint: each pixel's material, an index into ``NAMES``, and tone, 0 to 1; both (H, W)."""

    rng: np.random.Generator
    material: NDArray[np.intp]
    tone: Array
    x: Array  # (1, W), 0 in the middle
    y: Array  # (H, 1), 0 at the top
    unit: float  # of x and y, in pixels; the height, until zoomed
    side: int  # where the light comes from: left (-1) or right (1)
    dark: float = 0.0  # subtracted from every tone, at dusk

    def zoom(self, center: Pair, size: float) -> "Canvas":
        """The same canvas, in coordinates with this origin and unit."""
        x, y = center
        return replace(self, x=(self.x - x) / size, y=(self.y - y) / size, unit=self.unit * size)

    def noise(self, scale: float) -> Array:
        """Smooth noise (H, W) of about unit variance, whose features are about this large."""
        height, width = self.tone.shape
        rows, columns = (int(side / self.unit / scale) + 3 for side in (height, width))
        grid = self.rng.standard_normal((rows, columns), np.float32)
        return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))

    def lay(self, name: str, tone: Array | float, where: Mask | bool = True) -> None:
        np.copyto(self.material, NAMES.index(name), where=where)
        np.copyto(self.tone, np.float32(tone) - self.dark, where=where)

    def below(self, name: str, level: Array | float, tone: Array | float) -> None:
        """Lay a material below a level, which may vary with x."""
        self.lay(name, tone, self.y > level)

    def polygon(self, name: str, corners: list[Pair], tone: Array | float) -> None:
        mask = Image.new("1", self.tone.shape[::-1])
        pixels = [((x - self.x[0, 0]) * self.unit, (y - self.y[0, 0]) * self.unit) for x, y in corners]
        ImageDraw.Draw(mask).polygon(pixels, fill=1)
        self.lay(name, tone, np.asarray(mask))

    def blob(self, name: str, center: Pair, radii: Pair, tone: float, rough: float = 0.0, relief: float = 0.35) -> None:
        """Lay an ellipse, lit from above and from ``side``."""
        x, y = (self.x - center[0]) / radii[0], (self.y - center[1]) / radii[1]
        bumps = rough * self.noise(0.25 * min(radii)) if rough else 0
        self.lay(name, tone + relief * (0.7 * self.side * x - 0.8 * y + bumps), x**2 + y**2 + bumps < 1)

    def across(self) -> float:
        """A random x between the left and right edges."""
        return self.rng.uniform(self.x[0, 0], self.x[0, -1])


def landscape(canvas: Canvas) -> None:
    """Sky over land or sea, by day or, darker, at dusk."""
    rng, y = canvas.rng, canvas.y
    horizon, dusk = rng.uniform(0.35, 0.62), rng.random() < 0.25
    sky, cloud, tone = ("dusk", "dusk", 0.2) if dusk else ("sky", "cloud", 0.65)
    canvas.lay(sky, 0.1 + 0.8 * (y / horizon) ** 1.5 + 0.06 * canvas.noise(0.3))
    sun = canvas.across()
    if dusk:
        canvas.blob("dusk", (sun, horizon * rng.uniform(0.75, 1)), (0.06, 0.06), 1, relief=0)
    for _ in range(rng.integers(6)):
        radii = rng.uniform(0.1, 0.3), horizon * rng.uniform(0.06, 0.15)
        canvas.blob(cloud, (canvas.across(), horizon * rng.uniform(0.1, 0.75)), radii, tone, rough=0.4)
    canvas.dark = 0.2 * dusk
    for far in range(rng.integers(3))[::-1]:
        ridge = horizon - 0.05 - 0.07 * far - 0.06 * canvas.noise(rng.uniform(0.15, 0.4))[:1]
        canvas.below("mountain", ridge, 0.35 + 0.3 * far - 1.2 * (y - ridge) + 0.1 * canvas.noise(0.06))
    if rng.random() < 0.4:
        seascape(canvas, horizon, sun)
    else:
        countryside(canvas, horizon)


def seascape(canvas: Canvas, horizon: float, sun: float) -> None:
    """Water glittering under the sun, perhaps with boats and a shore."""
    rng, x, y = canvas.rng, canvas.x, canvas.y
    depth = (y - horizon) / (1 - horizon)
    water, gain = ("dusk sea", 0.6) if canvas.dark else ("sea", 0.1)
    glitter = gain * np.exp(-(((x - sun) / (0.06 + 0.1 * depth)) ** 2))
    canvas.below(water, horizon, 0.55 - 0.35 * depth + glitter + 0.06 * canvas.noise(0.1))
    for near in sorted(rng.uniform(0.02, 0.25, rng.integers(4))):
        boat(canvas.zoom((canvas.across(), horizon + near), 0.04 + 0.5 * near))
    if rng.random() < 0.7:
        shore = rng.uniform(0.8, 0.95) + rng.uniform(-0.3, 0.3) * x + 0.02 * canvas.noise(0.2)[:1]
        canvas.below("sand", shore, 0.75 - 0.5 * (y - shore))


def boat(canvas: Canvas) -> None:
    canvas.polygon("linen", [(0, -2), (0, -0.2), (canvas.side, -0.2)], 0.8)
    canvas.polygon("bark", [(-1.1, -0.2), (1.2, -0.2), (0.8, 0.15), (-0.8, 0.15)], 0.3)


def countryside(canvas: Canvas, horizon: float) -> None:
    """Strips of field and water with trees and houses."""
    rng, x, y = canvas.rng, canvas.x, canvas.y
    strips = "meadow", "meadow", "wheat", "wheat", "sand", "dusk sea" if canvas.dark else "sea"
    level = np.full_like(x, horizon)
    while level.min() < 1:
        canvas.below(str(rng.choice(strips)), level, 0.75 - 0.4 * (y - horizon) + 0.1 * canvas.noise(0.15))
        slope = rng.uniform(-0.6, 0.6) * x + 0.15 * canvas.noise(0.3)[:1]
        level = level + rng.uniform(0.7, 2) * (0.05 + 0.5 * (level.mean() - horizon)) * (1 + slope)
    things = [tree] * rng.integers(2, 7) + [house] * rng.integers(4)
    depths = rng.uniform(0.01, 0.33, len(things))
    for i in np.argsort(depths):
        things[i](canvas.zoom((canvas.across(), horizon + depths[i]), 0.07 + 0.5 * depths[i]))


def tree(canvas: Canvas) -> None:
    height, width = canvas.rng.uniform(1.6, 2.6), canvas.rng.uniform(0.6, 1)
    trunk = [(-0.12, 0.0), (-0.05, -height), (0.05, -height), (0.12, 0.0)]
    canvas.polygon("bark", trunk, 0.45 + 2 * canvas.side * canvas.x)
    leaves = "autumn" if canvas.rng.random() < 0.2 else "foliage"
    canvas.blob(leaves, (0, -height), (width, 0.6 * height), 0.45, rough=0.35)


def house(canvas: Canvas) -> None:
    width, eaves, top = (canvas.rng.uniform(*limits) for limits in ((0.6, 1.1), (-1, -0.6), (-1.6, -1.2)))
    canvas.polygon("wall", [(-width, 0), (-width, eaves), (width, eaves), (width, 0)], 0.75)
    roof = [(-width - 0.1, eaves), (-0.7 * width, top), (0.7 * width, top), (width + 0.1, eaves)]
    canvas.polygon("roof", roof, 0.5)
    for x in (-0.5 * width, 0.5 * width):
        canvas.blob("shadow", (x, 0.55 * eaves), (0.13, 0.17), 0.5)


def portrait(canvas: Canvas) -> None:
    """A head and shoulders against a dark backdrop."""
    rng, side = canvas.rng, canvas.side
    canvas = canvas.zoom((rng.uniform(-0.08, 0.08), rng.uniform(0.36, 0.42)), rng.uniform(0.15, 0.2))
    x, y = canvas.x, canvas.y  # the origin is the middle of the face; the chin is at y = 1
    canvas.lay("backdrop", 0.55 - 0.1 * np.hypot(x + 1.5 * side, y) + 0.08 * canvas.noise(1.2))
    locks = rng.uniform(0.8, 1.7)
    canvas.blob("hair", (0, locks - 1.1), (0.95, locks + 0.1), 0.4, rough=0.1)
    canvas.polygon("skin", [(-0.4, 0), (0.4, 0), (0.5, 2), (-0.5, 2)], 0.4)
    shoulders, folds = 1.45 + 0.25 * np.abs(x) ** 2.5, 0.08 * side * x + 0.15 * canvas.noise(0.5)
    canvas.below(str(rng.choice(["velvet", "cobalt"])), shoulders, 0.4 + folds)
    if rng.random() < 0.5:
        canvas.below("linen", np.maximum(shoulders, 1.2 + 2 * np.abs(x)), 0.7 + folds)
    canvas.blob("skin", (0, 0), (0.74, 1), 0.6, relief=0.4)
    canvas.blob("hair", (-0.15 * side, -0.9), (0.72, 0.28), 0.45)
    features = canvas.zoom((rng.uniform(-0.2, 0.2), 0), 1)  # turned to one side
    for eye in (-0.33, 0.33):
        features.blob("shadow", (eye, -0.3), (0.2, 0.04), 0.6)
        features.blob("skin", (eye, -0.12), (0.2, 0.13), 0.45)
        features.blob("shadow", (eye, -0.12), (0.13, 0.07), 0.3)
    features.polygon("skin", [(0, -0.15), (-0.17 * side, 0.3), (0, 0.35)], 0.4)
    features.blob("lips", (0, 0.58), (0.24, 0.09), 0.6)


def still_life(canvas: Canvas) -> None:
    """Fruits, perhaps flowers in a vase, on a table."""
    rng, x, y = canvas.rng, canvas.x, canvas.y
    edge = rng.uniform(0.5, 0.62)
    wall = str(rng.choice(["backdrop", "plaster"]))
    canvas.lay(wall, 0.45 + 0.35 * canvas.side * x + 0.08 * canvas.noise(0.2))
    canvas.below("wood", edge, 0.65 - 0.5 * (y - edge) + 0.06 * canvas.noise(0.2))
    if rng.random() < 0.6:
        hem = edge + 0.1 + rng.uniform(-0.4, 0.4) * x + 0.02 * canvas.noise(0.15)[:1]
        canvas.below("linen", hem, 0.65 + 0.2 * canvas.noise(0.12))
    if rng.random() < 0.7:
        vase(canvas.zoom((rng.uniform(-0.3, 0.3), edge + 0.04), rng.uniform(0.26, 0.34)))
    for base in sorted(rng.uniform(edge + 0.08, 0.97, rng.integers(3, 9))):
        fruit(canvas.zoom((canvas.across(), base), rng.uniform(0.07, 0.1) * (0.8 + base - edge)))


def vase(canvas: Canvas) -> None:
    rng, x, y, side = canvas.rng, canvas.x, canvas.y, canvas.side
    canvas.blob("foliage", (0, -1.2), (0.55, 0.36), 0.45, rough=0.3)
    for _ in range(rng.integers(4, 12)):
        flower = str(rng.choice(["velvet", "lemon", "linen"]))
        canvas.blob(flower, (rng.normal(0, 0.24), rng.normal(-1.24, 0.16)), (0.14, 0.14), 0.6, rough=0.2)
    x = x / (0.16 + 0.24 * np.sin(np.pi * np.clip(-y, 0, 1) ** 0.7) ** 2)
    gloss = 0.4 * np.exp(-30 * (x - 0.5 * side) ** 2)
    canvas.lay("cobalt", 0.45 + 0.4 * side * x + gloss, (y < 0) & (y > -1) & (np.abs(x) < 1))


def fruit(canvas: Canvas) -> None:
    canvas.blob("shadow", (-0.5 * canvas.side, 0), (1.2, 0.3), 0.6)
    name, height = str(canvas.rng.choice(["lemon", "orange", "apple", "plum"])), canvas.rng.uniform(0.85, 1.1)
    canvas.blob(name, (0, -height), (1, height), 0.5, relief=0.4)


SCENES = (landscape, 0.6, 0.25), (portrait, 0.2, 0.8), (still_life, 0.2, 0.2)  # scene, how often, how often upright


def brush(canvas: Canvas) -> Array:
    """Paint a canvas in strokes, each in the color at its middle: (H, W, 3), roughly in [0, 1]."""
    rng, (height, width) = canvas.rng, canvas.tone.shape
    length, breadth, angle, contrast = STROKES[:, canvas.material]
    cos, sin = np.cos(angle), np.sin(angle)
    i, j = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    wavy_i, wavy_j = i + 4 * canvas.noise(0.15), j + 4 * canvas.noise(0.15)  # no hand draws perfectly straight
    along, across = (wavy_j * cos + wavy_i * sin) / length, (wavy_i * cos - wavy_j * sin) / breadth
    values = rng.standard_normal(NUM_STROKES, np.float32)
    stroke, u, v = cover(along, across, values)
    u, v = u * length, v * breadth
    middle_i = np.clip(i - u * sin - v * cos, 0, height - 1).astype(np.intp)
    middle_j = np.clip(j - u * cos + v * sin, 0, width - 1).astype(np.intp)
    finer = STROKES[0, canvas.material[middle_i, middle_j]] < length  # a stroke this long would smear it
    middle_i, middle_j = np.where(finer, i, middle_i).astype(np.intp), np.where(finer, j, middle_j).astype(np.intp)
    tone = canvas.tone[middle_i, middle_j] + contrast * values[stroke]
    step = np.clip(tone * NUM_TONES, 0, NUM_TONES - 1).astype(np.intp)
    bristles = values[(stroke + v.astype(np.intp)) & (NUM_STROKES - 1)]
    weave = np.cos(np.pi / 2 * i) * np.cos(np.pi / 2 * j)
    light = 1 + 0.03 * bristles - 0.08 * v / breadth + 0.02 * weave  # the upper edge of wet paint catches the light
    return RAMPS[canvas.material[middle_i, middle_j], step] * light[..., None]


def cover(along: Array, across: Array, values: Array) -> tuple[Strokes, Array, Array]:
    """Cover a plane with strokes.

    Args:
        along, across: coordinates (H, W) in which a stroke is one unit long and one unit wide.
        values: a random number for each stroke.

    Returns:
        For each pixel, the stroke that shows, and how far along and across it the pixel lies from its middle.
    """
    stroke, u, v = np.zeros(along.shape, np.intp), np.zeros_like(along), np.zeros_like(along)
    for coat in range(NUM_COATS):
        shifted = across + np.float32(coat / NUM_COATS)
        row = np.floor(shifted)
        number = row.astype(np.intp) + 97 * coat
        started = along + values[number & (NUM_STROKES - 1)]  # staggered, so strokes do not all end in line
        column = np.floor(started)
        number = 1597 * number + 733 * column.astype(np.intp)
        coat_u, coat_v = started - column - 0.5, shifted - row - 0.5
        seen = (4 * coat_u**2) ** 2 + 4 * coat_v**2 < 1 if coat else True
        np.copyto(stroke, number & (NUM_STROKES - 1), where=seen)
        np.copyto(u, coat_u, where=seen)
        np.copyto(v, coat_v, where=seen)
    return stroke, u, v


def draw_painting(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one painting: (H, W, 3), RGB."""
    scene, _, upright = SCENES[rng.choice(len(SCENES), p=[share for _, share, _ in SCENES])]
    height, width = SHORT_SIDE, int(rng.integers(*LONG_SIDE, endpoint=True))
    if rng.random() < upright:
        height, width = width, height
    x = (np.arange(width, dtype=np.float32) - width / 2)[None] / height
    y = np.arange(height, dtype=np.float32)[:, None] / height
    material, tone = np.zeros((height, width), np.intp), np.zeros((height, width), np.float32)
    canvas = Canvas(rng, material, tone, x, y, height, rng.choice([-1, 1]))
    scene(canvas)
    return np.round(255 * np.clip(brush(canvas), 0, 1)).astype(np.uint8)


def demo_paintings() -> Path:
    """Return the folder of the demo paintings, laid out like the real ones. They are drawn on first use."""
    paintings = [
        ToDraw(f"{part}/painting/{i}.jpg", (part_index, i), draw_painting)
        for part_index, (part, number) in enumerate(NUM_IMAGES.items())
        for i in range(number)
    ]
    return draw_once("paintings", __file__, paintings, quality=92)
