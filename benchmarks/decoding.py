"""Only decodes and resizes images, on all cores: python -m benchmarks.decoding FOLDER SIZE processes"""

import sys
import time
from functools import partial
from multiprocessing import Pool
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.systems import say
from system.hardware import keep_freed_memory


def main(folder: str, size: str, workers: str) -> None:
    keep_freed_memory()
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    start = time.perf_counter()
    with ThreadPool() if workers == "threads" else Pool() as pool:
        for _ in pool.imap_unordered(partial(decode, int(size)), files, chunksize=32):
            pass
    seconds = time.perf_counter() - start
    say(images_per_second=len(files) / seconds, seconds=seconds)


def decode(side: int, path: Path) -> None:
    with Image.open(path) as image:
        image.draft(None, (2 * side, 2 * side))
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert would copy RGB
        square = rgb if rgb.size == (side, side) else ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC)
        np.asarray(square)


if __name__ == "__main__":
    main(*sys.argv[1:])
