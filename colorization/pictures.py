"""Color for pictures of any size, predicted at the network's own size."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from colorization.colorizer import Colorizer
from images.reading import read
from images.writing import Pixels, keeps_name, write
from modes import evaluating
from system.errors import reason, shown
from system.hardware import USE_CPU, within_memory

STRIP = 2**18  # full-resolution pixels converted at a time; more would not fit in the cache
LONGEST = 8  # times the model's size, at most, for a scaled side; without a limit, one thin image could fill the memory
RIDGE = 0.01  # variance of lightness, below which texture hardly changes the color


class Sketch(NamedTuple):
    """A picture at the model's size: all that vividness and hints change, so that trying them takes milliseconds."""

    lightness: Tensor  # (1, 1, H, W), in [0, 1]
    prediction: Any  # what the colorizer's ``predict`` returned


def colorize_files(colorizer: Colorizer, outputs: dict[Path, Path], **wishes: Any) -> int:
    """Colorize files (input: output), and return how many failed. Failures and notes are written to stderr.

    Args:
        wishes: what the colorizer's ``compose`` takes beside its prediction.
    """
    num_failed = 0
    noted: dict[str, list[Path]] = defaultdict(list)
    for image, output in tqdm(outputs.items(), desc="Colorizing", unit="image"):
        try:
            picture = read(image)
            with within_memory(USE_CPU):
                write(picture._replace(pixels=colorize(colorizer, picture.pixels, **wishes)), output)
            for note in picture.notes.values():
                noted[note].append(image)
        except Exception as error:  # damaged files raise all sorts of errors
            num_failed += 1
            tqdm.write(shown(f"{image}: {reason(error)}"), file=sys.stderr)
    for note, files in noted.items():
        more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        print(shown(f"{files[0]}{more}: {note}"), file=sys.stderr)
    return num_failed


def result_of(path: Path) -> Path:
    """Return the name of a picture's result, which is a PNG if the picture's own format is not written."""
    return path if keeps_name(path) else path.with_suffix(".png")


def colorize(colorizer: Colorizer, pixels: Pixels, **wishes: Any) -> Pixels:
    """Predict the color at the model's size, and lay it over the image's own lightness."""
    colored = pixels.copy()
    for _ in paint(colorizer, sketch(colorizer, pixels), colored, **wishes):
        pass
    return colored


def sketch(colorizer: Colorizer, pixels: Pixels) -> Sketch:
    """Let the network look at a picture, once for all wishes."""
    (height, width), size = pixels.shape[:2], colorizer.image_size
    scale = min(size / min(height, width), LONGEST * size / max(height, width))
    small = max(1, round(height * scale)), max(1, round(width * scale))
    with evaluating(colorizer):
        lightness, _ = colorizer.split(torch.from_numpy(scale_down(pixels, *small)[None]).to(colorizer.device))
        return Sketch(lightness, colorizer.predict(lightness))


def paint(colorizer: Colorizer, sketch: Sketch, pixels: Pixels, **wishes: Any) -> Iterator[float]:
    """Give pixels the sketch's color and their own lightness, a strip of rows at a time; yield the share that is done.

    Args:
        pixels: the sketched picture, of any size; they are replaced.
        wishes: what the colorizer's ``compose`` takes beside its prediction.
    """
    (height, width), whole = pixels.shape[:2], np.iinfo(pixels.dtype).max
    small = sketch.lightness.shape[2:]
    with evaluating(colorizer):
        chroma = colorizer.compose(sketch.prediction, sketch.lightness, **wishes)
        lines = fit_lines(chroma, sketch.lightness)
    planes = [Image.fromarray(plane) for plane in lines[0].cpu().numpy()]
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = pixels[top : top + rows, :, :3]
        box = (0, top * small[0] / height, small[1], (top + len(strip)) * small[0] / height)  # in the small planes
        resized = [plane.resize((width, len(strip)), Image.Resampling.BICUBIC, box) for plane in planes]
        lines = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized])[None]).to(colorizer.device)
        original = np.ascontiguousarray(strip.transpose(2, 0, 1), np.float32) / whole
        lightness, _ = colorizer.split(torch.from_numpy(original[None]).to(colorizer.device))
        slopes, offsets = lines.chunk(2, dim=1)
        joined = colorizer.join(lightness, slopes * lightness + offsets)[0].cpu().numpy()
        strip[:] = (joined * whole).round().transpose(1, 2, 0)
        yield (top + len(strip)) / height


def fit_lines(chroma: Tensor, lightness: Tensor) -> Tensor:
    """Describe how chroma (B, 2, H, W) follows lightness (B, 1, H, W) around each pixel: slopes, offsets (B, 4, H, W).

    Enlarged, and applied to the lightness of a larger image, they give its edges to the color. This is the fast guided
    filter (He & Sun 2015, arXiv:1505.00996), but applied to ``lightness`` itself they give ``chroma``, not smoothed.
    """

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)

    covariance = mean(chroma * lightness) - mean(chroma) * mean(lightness)
    slopes = mean(covariance / (mean(lightness**2) - mean(lightness) ** 2 + RIDGE))
    return torch.cat([slopes, chroma - slopes * lightness], dim=1)


def scale_down(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Return (3, height, width) in [0, 1], on white where the image is transparent."""
    whole = np.float32(np.iinfo(pixels.dtype).max)
    opacity = pixels[..., 3] / whole if pixels.shape[2] == 4 else np.float32(1)
    planes = (1 - opacity * (1 - pixels[..., channel] / whole) for channel in range(3))
    scaled = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in scaled]).clip(0, 1)
