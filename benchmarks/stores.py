"""The store's build, beside decoding alone, and how it is found again: python -m benchmarks.stores FOLDER SIZE"""

import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.systems import say
from datamodules.store import open_store
from train import keep_freed_memory


def main(folder: str, size: str) -> None:
    keep_freed_memory()
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    side = int(size)

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.draft(None, (2 * side, 2 * side))
            np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC))

    start = time.perf_counter()
    with ThreadPool() as pool:
        for _ in pool.imap_unordered(decode, files, chunksize=16):
            pass
    decoded = time.perf_counter()
    open_store(Path(folder), side, layout=None)
    built = time.perf_counter()
    open_store(Path(folder), side, layout=None)
    found = time.perf_counter()
    say(
        num_files=len(files),
        decoded_per_second=len(files) / (decoded - start),
        built_per_second=len(files) / (built - decoded),
        found_again_s=found - built,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
