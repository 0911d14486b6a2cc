"""What becomes of an image file: pixels for the store, or a line that says what is wrong with it."""

import errno
import hashlib
import math
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from colorization.files import orientation, reason, upright
from colorization.metrics import colorfulness

MAX_PIXELS = 80_000_000  # of a decoded image; each process that reads needs 3 bytes for each, and more while scaling
MIN_SIDE = 8  # pixels; anything smaller is a tracking pixel or an icon, and would be scaled up to flat color
CHUNK = 32  # files that a process is given at a time
ENOUGH_TO_FORK, ENOUGH_TO_SPAWN = 256, 4096  # files; fewer would be done before other processes are ready
THUMBNAIL = 32  # pixels, enough to tell how colorful an image is

Judged = tuple[bytes, float | str | OSError]  # a file's digest; its colorfulness, its fault, or the store's disk's


def judge(root: Path, paths: list[str], size: int, pixels: Path) -> Generator[Judged, None, None]:
    """Judge image files, and write the pixels of those that can be read to their rows; yield in the order of ``paths``.

    Many files are dealt to a process for each core; in threads, what Pillow does in Python would wait for the others.

    Args:
        root: folder of the files.
        paths: of the files, below ``root``.
        size: height and width to which they are brought, in pixels.
        pixels: a file with room for (len(paths), size, size, 3) uint8.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a process that is not forked imports everything anew
    enough = ENOUGH_TO_FORK if multiprocessing.get_start_method() == "fork" else ENOUGH_TO_SPAWN
    chunks = DataLoader(
        Judging(root, paths, size, pixels),
        batch_size=CHUNK,
        num_workers=min(num_cores, math.ceil(len(paths) / CHUNK)) if len(paths) >= enough else 0,
        worker_init_fn=leave_group,
        collate_fn=as_it_is,
        generator=torch.Generator(),  # or it would draw from the one that training draws from
    )
    with signals_deferred():
        judged = iter(chunks)
    yield from chain.from_iterable(judged)


class Judging(Dataset[Judged]):
    """Image files, each of which is judged when it is asked for."""

    def __init__(self, root: Path, paths: list[str], size: int, pixels: Path) -> None:
        self.root, self.paths, self.size, self.pixels = root, paths, size, pixels
        self.thinning = math.ceil(size / THUMBNAIL)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, rows: list[int]) -> list[Judged]:
        side = math.ceil(self.size / self.thinning)
        thumbnails = np.zeros((len(rows), side, side, 3), np.uint8)
        with self.pixels.open("r+b", buffering=0) as pixels:
            read = [
                self._read(row, pixels.fileno(), thumbnail) for row, thumbnail in zip(rows, thumbnails, strict=True)
            ]
        colors = colorfulness(as_images(thumbnails) / 255).tolist()
        return [
            (digest, color if fault is None else fault) for (digest, fault), color in zip(read, colors, strict=True)
        ]

    def _read(self, row: int, pixels: int, thumbnail: NDArray[np.uint8]) -> tuple[bytes, str | OSError | None]:
        """Return a file's digest and what is wrong with it, or with the store's disk; fill the thumbnail."""
        digest = b""
        try:
            path = os.path.join(self.root, self.paths[row])
            with open(path, "rb", buffering=0, opener=without_waiting) as content:
                if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
                    raise ValueError("a pipe or a device, not a file")  # reading it might never end
                data = content.readall()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            if not data:
                raise ValueError("empty file")
            image = decode(data, self.size)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            return digest, reason(error)
        try:
            if os.pwrite(pixels, image.data, row * image.nbytes) < image.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # returned, as a DataLoader would raise it without its number
            return digest, error
        thumbnail[:] = image[:: self.thinning, :: self.thinning]
        return digest, None


def decode(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode an image file: upright, in 8 bits, and on white where it is transparent.

    Returns:
        (size, size, 3) RGB: the shorter side scaled to ``size``, the longer one cropped about its center.

    Raises:
        ValueError: if the image is too small or too large, or its values have no defined range.
        Exception: whatever Pillow raises on a broken file, of which there are many kinds.
    """
    image: Image.Image
    with Image.open(BytesIO(data)) as image:
        if min(image.size) < MIN_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels, needs {MIN_SIDE} x {MIN_SIDE} or more")
        image.draft(None, (2 * size, 2 * size))  # JPEG: leave out the detail that scaling down would lose
        if image.width * image.height > MAX_PIXELS:  # Pillow itself stops at twice as many
            raise ValueError(f"{image.width} x {image.height} pixels, may have {MAX_PIXELS:,} at most")
        image.load()
        lies = orientation(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
            image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("32-bit values, whose range is not known; save it with 8 or 16 bits")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it
        if image.size != (size, size):  # else fit would copy it
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        square = np.asarray(image)
        return np.ascontiguousarray(upright(square, lies))


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """View pixels (N, H, W, 3) as a tensor (N, 3, H, W), in the channels-last layout in which networks train faster."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe would else wait for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Keep SIGINT and SIGTERM for later: what their handlers raise while a process is forked, Python would ignore."""
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield
        return
    received: list[int] = []
    handlers = {
        signum: signal.signal(signum, lambda signum, frame: received.append(signum))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for signal_received in received:
        signal.raise_signal(signal_received)


def as_it_is(batch: Any) -> Any:
    """Collate nothing: a dataset returns whole batches."""
    return batch


def leave_group(worker: int) -> None:
    """Let a signal to all processes of a terminal or a job spare a worker, whose parent will end it."""
    os.setpgrp()
