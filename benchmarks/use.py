"""Colorizes 12 megapixels by the model that comes with Pigment, and shows a hint: python -m benchmarks.use"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.systems import DEVICE, say, synchronize
from colorization import PaletteColorizer
from colorization.hints import Hint
from colorization.pictures import colorize, colorize_files
from colorization.weights import PALETTE
from images.reading import read
from modes import evaluating
from resuming.checkpoints import load_model
from system.hardware import keep_freed_memory

SIZE = (4000, 3000)
HINTED = 20  # times that a hint is shown


def main() -> None:
    keep_freed_memory()
    model, _ = load_model(PALETTE, PaletteColorizer)
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "picture.jpg"), Path(folder, "colored.jpg")
        noise = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(SIZE).save(file)
        pixels = read(file).pixels
        colorize(model, pixels)  # warms up
        in_memory = seconds(lambda: colorize(model, pixels))
        with_files = seconds(lambda: colorize_files(model, {file: output}))
    say(in_memory_s=in_memory, with_files_s=with_files, hint_s=seconds_of_a_hint(model))


def seconds_of_a_hint(model: PaletteColorizer) -> float:
    """Return how long a hint takes to show at the model's size, on a prediction that is already there."""
    size = model.image_size
    with evaluating(model):
        lightness, _ = model.split(torch.rand(1, 3, size, size * SIZE[0] // SIZE[1], device=DEVICE))
        prediction = model.predict(lightness)

        def show() -> None:
            for _ in range(HINTED):
                hints = [Hint(0.5, 0.5, (0.8, 0.2, 0.1))]
                model.join(lightness, model.compose(prediction, lightness, hints=hints))

        show()
        return seconds(show) / HINTED


def seconds(work: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
