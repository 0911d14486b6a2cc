"""A picture that a person is coloring: a preview, what models make of it, and hints that can be undone."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from colorization import Colorizer, PaletteColorizer
from colorization.color import lab_to_rgb, rgb_to_lab
from colorization.hints import Hint
from colorization.palette import Likely
from colorization.pictures import Sketch, paint, result_of, scale_down, sketch
from colorization.weights import PALETTE
from images.colorfulness import COLORLESS, colorfulness
from images.reading import read
from images.writing import Picture, Pixels, write
from system.errors import PigmentError, reason

PREVIEW = 800  # pixels of a preview's longer side
SMALL = 400  # of pictures side by side, on which a model is measured
CHOICES = 8  # colors offered for a spot

Preview = NDArray[np.uint8]  # (H, W, 3)


class View(NamedTuple):
    """What one model makes of a picture."""

    sketch: Sketch
    name: str
    details: str  # what the model's run says
    wishes: dict[str, Any] | None  # that it fulfills
    colored: Preview
    figures: str  # how close that is to the original, if it is in color


@dataclass
class Easel:
    """A picture at preview size, and what a person wishes for it.

    Attributes:
        views: what models make of it, by checkpoint.
        shown: the checkpoint whose view is looked at, and changed.
        past: the hints before each change.
        elsewhere: both of these, for the pictures that were here before.
        spot: where the person pointed last, x and y from 0 to 1; at first, the middle.
        when: the time of that, in milliseconds on the browser's clock.
    """

    path: Path
    size: str
    original: Preview
    gray: Preview
    vividness: float
    views: dict[str, View] = field(default_factory=dict)
    shown: str = ""
    hints: tuple[Hint, ...] = ()
    past: list[tuple[Hint, ...]] = field(default_factory=list)
    elsewhere: dict[Path, tuple[tuple[Hint, ...], list[tuple[Hint, ...]]]] = field(default_factory=dict)
    spot: tuple[float, float] = (0.5, 0.5)
    when: float = 0.0

    @classmethod
    def of(cls, path: Path, pixels: Pixels, vividness: float) -> "Easel":
        height, width = pixels.shape[:2]
        scale = min(1, PREVIEW / max(height, width))
        scaled = scale_down(pixels, max(1, round(scale * height)), max(1, round(scale * width)))
        original = torch.from_numpy(scaled)[None]
        gray = lab_to_rgb(rgb_to_lab(original) * torch.tensor([1, 0, 0]).view(3, 1, 1))
        return cls(path, f"{width:,} x {height:,}", as_pixels(original), as_pixels(gray), vividness)

    def follow(self, before: "Easel") -> None:
        """Take the place of another picture: keep its model in view, and bring back this one's earlier hints."""
        self.shown = before.shown
        self.elsewhere = {**before.elsewhere, before.path: (before.hints, before.past)}
        self.hints, self.past = self.elsewhere.get(self.path, ((), []))

    @cached_property
    def in_color(self) -> bool:
        return float(colorfulness(to_tensor(self.original)[None])) >= COLORLESS

    def look(self, checkpoint: str, label: str, colorizer: Colorizer, pixels: Pixels) -> None:
        """Let a model look at the whole picture, once, and color the preview."""
        name, _, details = label.partition(" · ")
        self.views[checkpoint] = View(sketch(colorizer, pixels), name, details, None, self.original, "")
        self.color(checkpoint, colorizer)

    def color(self, checkpoint: str, colorizer: Colorizer) -> None:
        """Color the preview as the person now wishes."""
        view, wishes = self.views[checkpoint], self.wishes(colorizer)
        if view.wishes == wishes:
            return
        colored = self.original.copy()
        for _ in paint(colorizer, view.sketch, colored, **wishes):
            pass
        figures = ""
        if self.in_color:
            truth, ours = (to_tensor(small(one))[None].to(colorizer.device) for one in (self.original, colored))
            measured = colorizer.compare(truth, ours)
            figures = f"Here: CIEDE2000 {float(measured['CIEDE2000']):.1f}, PSNR {float(measured['PSNR']):.1f} dB"
        self.views[checkpoint] = view._replace(wishes=wishes, colored=colored, figures=figures)

    def wishes(self, colorizer: Colorizer) -> dict[str, Any]:
        return {"vividness": self.vividness, "hints": self.hints} if isinstance(colorizer, PaletteColorizer) else {}

    def likeliest(self, colorizer: PaletteColorizer) -> list[Likely]:
        """Return the shown model's own likeliest colors for the spot."""
        lightness, prediction = self.views[self.shown].sketch
        return colorizer.likeliest(prediction, lightness, *self.spot, CHOICES)

    def point(self, x: float, y: float, when: float) -> None:
        if when > self.when:  # one request can overtake another
            self.spot, self.when = (round(x, 4), round(y, 4)), when

    def put(self, color: str) -> None:
        """Put a hint at the spot, in place of one that is there."""
        try:
            placed = Hint.parse(f"{self.spot[0]},{self.spot[1]},{color}")
        except ValueError:
            raise PigmentError(f"'{color}' is not a color; use #rrggbb or a name") from None
        self.change_hints([*(hint for hint in self.hints if hint[:2] != self.spot), placed])

    def move(self, text: str) -> None:
        """Move a hint to the spot, unless another one is there."""
        if text not in map(str, self.hints):  # a second click can come before the page shows the change
            return
        if any(hint[:2] == self.spot and str(hint) != text for hint in self.hints):
            raise PigmentError("there is a color at the ring already; point somewhere else first")
        self.change_hints([Hint(*self.spot, hint.color) if str(hint) == text else hint for hint in self.hints])

    def enliven(self, vividness: float) -> None:
        self.vividness = vividness

    def choose(self, checkpoint: str) -> None:
        if checkpoint in self.views:  # a click can come after its tile was replaced
            self.shown = checkpoint

    def remove(self, text: str) -> None:
        self.change_hints([hint for hint in self.hints if str(hint) != text])

    def change_hints(self, hints: Sequence[Hint]) -> None:
        if tuple(hints) != self.hints:
            self.past.append(self.hints)
            self.hints = tuple(hints)

    def undo(self) -> None:
        if self.past:
            self.hints = self.past.pop()

    def command(self, colorizer: Colorizer) -> str:
        """Return the line that makes the same picture."""
        options = [] if Path(self.shown) == PALETTE else ["--ckpt", self.shown]
        if isinstance(colorizer, PaletteColorizer):
            if colorizer.curve is not None:  # before its first validation, a model has only one vividness
                options += ["--vividness", f"{self.vividness:g}"]
            options += [part for hint in self.hints for part in ("--hint", str(hint))]
        return shlex.join(["python", "-m", "colorization", self.path.name, "--out", "colorized", *options])

    def save(self, colorizer: Colorizer, folder: Path) -> Iterator[float | Path]:
        """Color the whole picture as the command does: yield the share that is done, then the path of the result."""
        picture = read_picture(self.path)
        colored = picture.pixels.copy()
        yield from paint(colorizer, self.views[self.shown].sketch, colored, **self.wishes(colorizer))
        name = result_of(Path(self.path.name))
        output = folder / name.with_stem(f"{name.stem} in color")
        write(picture._replace(pixels=colored), output)
        yield output


def read_picture(path: Path) -> Picture:
    try:
        return read(path)
    except Exception as error:  # damaged files raise all sorts of errors
        raise PigmentError(f"{path.name}: {reason(error)}") from error


def small(pixels: Preview) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((SMALL, SMALL))
    return image


def as_pixels(images: Tensor) -> Preview:
    return (255 * images[0]).round().byte().permute(1, 2, 0).cpu().numpy()
