"""Draws a demo data set on first use and keeps it in the cache folder."""

import hashlib
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from datamodules.cache import build_once, cache_folder


class ToDraw(NamedTuple):
    path: str  # inside the data set's folder
    seed: tuple[int, ...]
    draw: Callable[[np.random.Generator], NDArray[np.uint8]]  # (H, W, 3), RGB


def draw_once(subject: str, source: str, images: Sequence[ToDraw], quality: int) -> Path:
    """Return the folder of a demo data set. If it is not there yet, draw the images and save them as JPEGs.

    The folder's name holds a hash of ``source``, the file that draws, and of this one: new code draws new images.
    """

    def draw_all(folder: Path) -> None:
        def draw(image: ToDraw) -> None:
            path = folder / image.path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.draw(np.random.default_rng(image.seed))).save(path, quality=quality)

        with ThreadPool(2) as pool:  # more would only wait for the GIL
            for _ in tqdm(pool.imap(draw, images), f"Drawing demo {subject}", len(images), unit="image"):
                pass

    code = Path(source).read_bytes() + Path(__file__).read_bytes()
    version = hashlib.blake2b(code, digest_size=4).hexdigest()
    return build_once(cache_folder() / f"demo-{subject}-{version}", draw_all)
