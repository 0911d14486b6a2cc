"""Draws fruits and lays them out like Fruits-360, so everything runs without a download.

``FRUITS`` describes the kinds: a body of revolution, coats of color over its skin, perhaps a stem. One shader,
``draw_fruit``, draws them all: it poses the body, traces a ray from each pixel, paints the point it hits and lights it.
Images of one kind vary continuously in pose, proportions, ripeness and tint: a manifold for a model to learn.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from datamodules.demo.draw_once import ToDraw, draw_once

NUM_IMAGES = {"Training": 250, "Test": 40}  # of each kind
SIZE = 100  # pixels, as in Fruits-360
SUPERSAMPLING = 2  # rays per pixel, in each direction
MAX_STEPS = 40  # along a ray; one that needs more grazes the skin
GAMMA = 2.2  # colors are given in sRGB; light adds up linearly

Array = NDArray[np.floating]
Rays = tuple[NDArray[np.intp], ...]  # row and column indices into the grid of rays


@dataclass(frozen=True)
class Coat:
    """A layer of color over the skin. Its opacity is smoothstep(bias + sun * x + stem * z + gain * pattern)."""

    color: str
    bias: float = 0.0
    sun: float = 0.0  # denser on the sunny side, where x = 1
    stem: float = 0.0  # denser toward the stem, where z = 1
    pattern: Callable[[Array, "Coat"], Array] | None = None
    gain: float = 1.0
    number: float = 2.0  # of spots, leaves or creases; the spatial frequency of noise
    reach: float = 0.1  # of a spot, leaf or crease, in radians
    relief: float = 0.0  # height where opaque, in radii of the body


@dataclass(frozen=True)
class Stem:
    """A bent cylinder on top of the body."""

    color: str
    length: float
    radius: float = 0.04
    bend: float = 0.2


@dataclass(frozen=True)
class Fruit:
    """A body of revolution whose radius, at angle t from the stem, is a function of c = cos t."""

    color: str
    body: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  # coefficients of 1, c, c^2, c^3
    top: tuple[float, float] = (0.0, 1.0)  # a bump at the stem: its height (negative: a dimple), its width in c
    bottom: tuple[float, float] = (0.0, 1.0)
    gloss: float = 0.3  # strength of the highlight
    polish: float = 30.0  # sharpness of the highlight: Blinn-Phong's exponent
    fuzz: float = 0.0  # light that the down catches at the rim
    stem: Stem | None = None
    coats: tuple[Coat, ...] = ()

    def radius(self, c: Array) -> Array:
        a0, a1, a2, a3 = self.body
        return a0 + c * (a1 + c * (a2 + c * a3)) + bump(self.top, c) + bump(self.bottom, -c)

    def slope(self, c: Array) -> Array:
        """Derivative of the radius with respect to c."""
        _, a1, a2, a3 = self.body
        ends = bump(self.top, c) / self.top[1] - bump(self.bottom, -c) / self.bottom[1]
        return a1 + c * (2 * a2 + c * 3 * a3) + ends


def bump(shape: tuple[float, float], c: Array) -> Array:
    height, width = shape
    return height * np.exp((c - 1) / width)


def normalize(vectors: Array) -> Array:
    return vectors / np.sqrt((vectors**2).sum(0))


def project(points: Array, axes: Array) -> Array:
    """Coordinates (..., H, W) of points (3, H, W) along axes (..., 3)."""
    return np.einsum("...i,ihw->...hw", axes, points)  # BLAS would spend more on threads than on this small product


def smoothstep(t: Array) -> Array:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def spiral(number: float) -> Array:
    """(3, number) directions, evenly spread over the sphere along a golden spiral."""
    i = np.arange(number, dtype=np.float32) + 0.5
    height, azimuth = 1 - 2 * i / len(i), np.pi * (5**0.5 - 1) * i
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height])


# Patterns map points of the skin (3, H, W) to values (H, W).

_rng = np.random.default_rng(0)
WAVES = _rng.normal(size=(12, 3)).astype(np.float32)
PHASES = _rng.uniform(0, 2 * np.pi, size=(12, 1, 1)).astype(np.float32)


def clouds(points: Array, coat: Coat) -> Array:
    """Noise of unit variance: a sum of plane waves."""
    return np.cos(project(points, coat.number * WAVES) + PHASES).sum(0) / (len(WAVES) / 2) ** 0.5


def streaks(points: Array, coat: Coat) -> Array:
    """Noise of unit variance, stretched along the meridians."""
    x, y, z = points
    across = np.sqrt(x**2 + y**2) + 1e-3
    return clouds(np.stack([x / across, y / across, z / 5]), coat)


def spots(points: Array, coat: Coat) -> Array:
    """Distance to the edge of evenly spread discs, negative outside them."""
    cosine = project(normalize(points), spiral(coat.number).T).max(0)
    return coat.reach - np.sqrt(2 - 2 * np.minimum(cosine, 1))


def star(points: Array, coat: Coat) -> Array:
    """Distance to the edge of pointed leaves around the stem, negative outside them."""
    x, y, z = points
    leaf = np.abs(np.cos(coat.number / 2 * np.arctan2(y, x))) ** 1.5
    return coat.reach * (0.15 + 0.85 * leaf) - np.arctan2(np.sqrt(x**2 + y**2), z)


def creases(points: Array, coat: Coat) -> Array:
    """1 along evenly spaced meridians, 0 between them, fading toward the poles."""
    x, y, _ = points
    sideways = 2 / coat.number * np.sin(coat.number / 2 * np.arctan2(y, x))
    return np.exp(-((sideways / coat.reach) ** 2)) * np.sqrt(x**2 + y**2)


# fmt: off
APPLE = (1.0, 0.06, -0.02, 0.04), (-0.42, 0.09), (-0.22, 0.05)  # body, top, bottom
FRUITS = {
    "Apple Golden": Fruit("#d9cf52", *APPLE, gloss=0.25, polish=25, stem=Stem("#5b4322", 0.5), coats=(
        Coat("#e3a040", -0.5, sun=0.9, pattern=clouds, gain=0.3),
        Coat("#a3b036", -4.6, stem=5),
        Coat("#8a7a30", pattern=spots, gain=30, number=90, reach=0.024),
    )),
    "Apple Red": Fruit("#dfae4e", *APPLE, gloss=0.35, polish=25, stem=Stem("#4a3520", 0.55), coats=(
        Coat("#c03a26", 0.75, sun=0.35, pattern=clouds, gain=0.2),
        Coat("#960f1a", 0.4, sun=0.35, pattern=streaks, gain=0.25, number=9),
        Coat("#d8924a", -0.3, sun=-0.15, pattern=streaks, gain=0.3, number=22),
        Coat("#b8a040", -4.4, stem=4.8, pattern=streaks, gain=0.3, number=4),
        Coat("#e0a070", pattern=spots, gain=25, number=110, reach=0.02),
    )),
    "Cherry": Fruit("#86061a", (1.0, 0.06, 0, 0), (-0.3, 0.1), gloss=1.0, polish=90, stem=Stem("#6b8a2e", 1, 0.05, 0.5),
        coats=(
            Coat("#4a0210", -0.2, sun=-0.5, pattern=clouds, gain=0.4),
            Coat("#5c0410", pattern=creases, number=1, reach=0.12, relief=-0.03),
        )
    ),
    "Lemon": Fruit("#f2cc1c", (0.9, 0, 0.24, 0), (0.10, 0.02), (0.26, 0.035), gloss=0.4, coats=(
        Coat("#e6ba12", 0.3, pattern=clouds, gain=0.3, number=52, relief=-0.012),
        Coat("#a8b030", -6.5, stem=-7, pattern=clouds, gain=0.3),
        Coat("#6e6a2a", -30, stem=30.6),
    )),
    "Lime": Fruit("#4f8f1c", (0.95, 0, 0.13, 0), bottom=(0.12, 0.03), gloss=0.5, polish=40, coats=(
        Coat("#9aba3c", -0.1, sun=0.6, stem=-0.5, pattern=clouds, gain=0.3),
        Coat("#44801a", -0.1, sun=-0.3, pattern=clouds, gain=0.4, number=52, relief=-0.012),
        Coat("#8a7b3c", -30, stem=30.5),
    )),
    "Orange": Fruit("#f28a0c", (1.0, 0, -0.05, 0), (-0.07, 0.04), gloss=0.3, polish=20, coats=(
        Coat("#e27808", 0.3, pattern=clouds, gain=0.3, number=52, relief=-0.012),
        Coat("#5d6b22", pattern=star, gain=25, number=5, reach=0.14, relief=0.02),
    )),
    "Peach": Fruit("#f2b765", (1.0, 0, -0.03, 0), (-0.28, 0.05), (0.04, 0.03), gloss=0.05, polish=8, fuzz=0.4, coats=(
        Coat("#dc5f3e", 0.55, sun=0.5, pattern=clouds, gain=0.25, number=2.5),
        Coat("#a82430", -0.1, sun=0.8, pattern=clouds, gain=0.15, number=9),
        Coat("#b4502c", pattern=creases, number=1, reach=0.14, relief=-0.1),
    )),
    "Pear": Fruit("#b9bf45", (1.0, 0.12, 0.05, 0.1), (0.7, 0.10), (-0.16, 0.03), gloss=0.2, polish=18,
        stem=Stem("#5a4325", 0.5, 0.05),
        coats=(
            Coat("#c98a3a", -0.3, sun=0.9, pattern=clouds, gain=0.3),
            Coat("#8b7a35", -5.3, stem=-6, pattern=clouds, gain=0.3),
            Coat("#77702c", pattern=spots, gain=30, number=120, reach=0.022),
        )
    ),
    "Plum": Fruit("#3d1648", (0.95, 0, 0.14, 0), (-0.2, 0.04), gloss=0.25, polish=20,
        stem=Stem("#6a5a34", 0.25),
        coats=(
            Coat("#7a2348", -0.2, sun=0.8, pattern=clouds, gain=0.3),
            Coat("#7f7fae", -0.1, stem=0.2, pattern=clouds, gain=0.3, number=3),
            Coat("#260d30", pattern=creases, number=1, relief=-0.06),
        )
    ),
    "Strawberry": Fruit("#c9121c", (1.0, -0.12, 0.1, -0.3), gloss=0.6, polish=35,
        stem=Stem("#6d9a3c", 0.35, 0.05),
        coats=(
            Coat("#e9c9a0", -4, stem=4.6),
            Coat("#8a0a10", pattern=spots, gain=6, number=150, reach=0.085, relief=-0.05),
            Coat("#e8c860", pattern=spots, gain=25, number=150, reach=0.04, relief=0.03),
            Coat("#4f8f2c", pattern=star, gain=8, number=9, reach=0.9, relief=0.06),
        )
    ),
    "Tomato": Fruit("#d01e10", (1.0, 0.02, -0.14, 0), (-0.16, 0.08), gloss=0.8, polish=60,
        stem=Stem("#55842d", 0.3, 0.06, 0.1),
        coats=(
            Coat("#e2601c", -4, stem=4.4, pattern=clouds, gain=0.3),
            Coat("#a81408", stem=0.2, pattern=creases, gain=0.5, number=5, reach=0.15, relief=-0.06),
            Coat("#4a7d26", pattern=star, gain=10, number=5, reach=0.8, relief=0.05),
        )
    ),
    "Watermelon": Fruit("#a9c873", (0.96, 0, 0.12, 0), gloss=0.35, polish=25, stem=Stem("#6f6a3a", 0.2, 0.05), coats=(
        Coat("#5b9a4a", 0.3, pattern=streaks, gain=0.4, number=9),
        Coat("#174a1e", -0.3, pattern=creases, gain=2, number=9, reach=0.13),
        Coat("#7fae58", -0.3, pattern=clouds, gain=0.4, number=9),
        Coat("#c9c06a", -5, stem=-5.8),
    )),
}
# fmt: on

LIGHT = normalize(np.array([-0.45, 0.6, 0.75], np.float32)).reshape(3, 1, 1)  # a large lamp, above and to the left
HALFWAY = normalize(LIGHT + np.array([0, 0, 1], np.float32).reshape(3, 1, 1))  # between the lamp and the viewer


def draw_fruit(kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a fruit on white: (100, 100, 3), RGB. ``kind`` is a key of ``FRUITS``."""
    fruit = FRUITS[kind]
    a0, a1, a2, a3 = fruit.body
    fruit = replace(fruit, body=(a0, a1, a2 + rng.normal(0, 0.03), a3))
    ripeness, fill = rng.normal(0, 0.2), rng.uniform(0.93, 0.99)
    tint = np.exp(rng.normal(0, 0.05, size=(3, 1, 1))).astype(np.float32)
    roll, tilt, spin = rng.normal(0, 0.3), rng.uniform(-0.1, 0.9), rng.uniform(0, 2 * np.pi)
    # from the fruit's axes (z along the stem) to the camera's (x right, y up, z toward the viewer)
    turn = rotation(0, 1, roll) @ rotation(1, 2, tilt - np.pi / 2) @ rotation(0, 1, spin)

    axis, beads = turn[:, 2], turn @ stem_beads(fruit)
    x, y = frame(np.concatenate([outline(fruit, axis), beads], 1), fill)
    z = trace(fruit, axis, x, y)
    seen = np.stack([x, y, np.maximum(z, 0)])  # z is -inf where a ray misses
    distance = np.sqrt((seen**2).sum(0))
    direction = seen / distance
    c = project(direction, axis)
    normal = normalize(direction - fruit.slope(c) / distance * (axis[:, None, None] - c * direction))

    albedo, relief = paint(fruit, project(seen, turn.T), ripeness)
    downhill, rightward = np.gradient(relief, x[0, 1] - x[0, 0])
    ascent = np.stack([rightward, -downhill, np.zeros_like(z)])
    normal = normalize(normal - ascent + normal * (normal * ascent).sum(0))  # tilted by the slope of the relief
    occlusion = (1 + 1.3 * np.minimum(bump(fruit.top, c), 0)) * (1 + 2 * np.minimum(bump(fruit.bottom, -c), 0))

    if fruit.stem:
        rays, stem_z, stem_normal = trace_stem(beads, fruit.stem.radius, x, y)
        front = stem_z > z[rays]
        i, j = (index[front] for index in rays)
        z[i, j], normal[:, i, j], occlusion[i, j] = stem_z[front], stem_normal[:, front], 1
        albedo[:, i, j] = linear(fruit.stem.color)[..., 0]

    facing = np.clip(normal[2], 0, 1)
    lambert = np.clip(((normal * LIGHT).sum(0) + 0.25) / 1.25, 0, 1)  # light from a large lamp wraps around the edge
    ambient = 0.28 + 0.1 * normal[1]
    diffuse = (0.95 * lambert + ambient) * (0.55 + 0.45 * np.sqrt(facing)) + fruit.fuzz * (1 - facing) ** 3
    specular = fruit.gloss * np.clip((normal * HALFWAY).sum(0), 0, 1) ** fruit.polish
    light = np.where(z > -np.inf, (albedo * tint * diffuse + specular) * occlusion, 1)
    image = np.clip(light, 0, 1) ** (1 / GAMMA)
    pixels = image.reshape(3, SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING).mean((2, 4))
    return np.round(255 * pixels).astype(np.uint8).transpose(1, 2, 0)


def rotation(i: int, j: int, angle: float) -> Array:
    """(3, 3), turns axis i toward axis j."""
    turn = np.eye(3, dtype=np.float32)
    turn[[i, j], [i, j]] = np.cos(angle)
    turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
    return turn


def outline(fruit: Fruit, axis: Array) -> Array:
    """(3, N) points all over the body when its stem points along ``axis``."""
    directions = spiral(1500)
    return fruit.radius(axis @ directions) * directions


def stem_beads(fruit: Fruit) -> Array:
    """(3, N) centers of the spheres that make up the stem, in the fruit's axes; N is 0 without a stem."""
    if not fruit.stem:
        return np.zeros((3, 0), np.float32)
    t = np.linspace(0, 1, 24, dtype=np.float32)
    return np.stack([fruit.stem.bend * t**2, 0 * t, fruit.radius(np.ones_like(t)) + fruit.stem.length * t])


def frame(points: Array, fill: float) -> tuple[Array, Array]:
    """x and y (H, W) of the rays in the image plane, scaled so that points (3, N) fill this share of the frame."""
    low, high = points[:2].min(1), points[:2].max(1)
    num_rays = SIZE * SUPERSAMPLING
    grid = (np.arange(num_rays, dtype=np.float32) - (num_rays - 1) / 2) / num_rays * ((high - low).max() / fill)
    x, y = np.meshgrid(grid + (low + high)[0] / 2, (low + high)[1] / 2 - grid)
    return x, y


def trace(fruit: Fruit, axis: Array, x: Array, y: Array) -> Array:
    """Sphere tracing: z (H, W) where each ray from the viewer meets the body, -inf where it misses."""
    bound = fruit.radius(np.linspace(-1, 1, 99, dtype=np.float32)).max()
    z = np.full_like(x, -np.inf)
    ray = np.flatnonzero(x**2 + y**2 < bound**2)
    plane, height = (x**2 + y**2).flat[ray], (axis[0] * x + axis[1] * y).flat[ray]
    depth = np.sqrt(bound**2 - plane)
    for _ in range(MAX_STEPS):
        distance = np.sqrt(plane + depth**2)
        gap = distance - fruit.radius((height + axis[2] * depth) / distance)
        depth = depth - gap
        met = np.abs(gap) < 0.005
        z.flat[ray[met]] = depth[met]
        on = np.flatnonzero(~met & (depth > -bound))
        ray, plane, height, depth = ray[on], plane[on], height[on], depth[on]
    z.flat[ray] = depth
    return z


def trace_stem(beads: Array, radius: float, x: Array, y: Array) -> tuple[Rays, Array, Array]:
    """The N rays near the stem, z (N,) where each meets it (-inf where it misses), and the normals (3, N) there."""
    low, high = beads.min(1) - radius, beads.max(1) + radius
    rays = np.nonzero((x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1]))
    x, y = x[rays], y[rays]
    squared = radius**2 - (x[:, None] - beads[0]) ** 2 - (y[:, None] - beads[1]) ** 2  # (N, beads)
    depth = np.where(squared > 0, beads[2] + np.sqrt(np.maximum(squared, 0)), -np.inf)
    z = depth.max(1)
    return rays, z, (np.stack([x, y, z]) - beads[:, depth.argmax(1)]) / radius


def paint(fruit: Fruit, points: Array, ripeness: float) -> tuple[Array, Array]:
    """Albedo (3, H, W), in linear light, and relief (H, W) at points (3, H, W) in the fruit's axes."""
    x, _, z = normalize(points)
    albedo, relief = linear(fruit.color), np.zeros_like(x)
    for coat in fruit.coats:
        density = coat.bias + coat.sun * (x + ripeness) + coat.stem * z
        if coat.pattern:
            density = density + coat.gain * coat.pattern(points, coat)
        opacity = smoothstep(density)
        albedo = albedo + opacity * (linear(coat.color) - albedo)
        relief = relief + coat.relief * opacity
    return albedo, relief


def linear(color: str) -> Array:
    """A CSS color in linear light, (3, 1, 1)."""
    return (np.array(ImageColor.getrgb(color), np.float32) / 255).reshape(3, 1, 1) ** GAMMA


def demo_fruits() -> Path:
    """Return the folder of the demo fruits, laid out like Fruits-360. They are drawn on first use."""
    fruits = [
        ToDraw(f"{part}/{kind}/{i}_100.jpg", (part_index, kind_index, i), partial(draw_fruit, kind))
        for part_index, (part, number) in enumerate(NUM_IMAGES.items())
        for kind_index, kind in enumerate(FRUITS)
        for i in range(number)
    ]
    return draw_once("fruits", __file__, fruits, quality=95)
