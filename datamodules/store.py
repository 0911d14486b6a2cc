"""A folder of images, judged and decoded once: pixels on disk, and a manifest that says what became of every file."""

import csv
import errno
import gc
import hashlib
import json
import math
import os
import shutil
import stat
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from colorization.files import SUFFIXES, orientation, reason, upright
from colorization.metrics import colorfulness
from datamodules.cache import build_once, cache_folder

PIXELS_FILE, MANIFEST_FILE, INDEX_FILE = "pixels.uint8", "manifest.csv", "index.json"
FORMAT = 3  # raised when stores that older code built no longer serve
MAX_PIXELS = 80_000_000  # of a decoded image; each thread that reads needs 3 bytes for each, and more while scaling
COLORLESS = 5.0  # below it, an image is called nearly colorless: gray, or gray with the tint of old paper
MIN_SIDE = 8  # pixels; anything smaller is a tracking pixel or an icon, and would be scaled up to flat color
CHUNK = 32  # files that a thread is given at a time
BLOCK = 256  # files whose colorfulness is measured together
THUMBNAIL = 32  # pixels, enough to tell how colorful an image is

Part = Literal["train", "val", "test"]
Judged = tuple[bytes, NDArray[np.uint8] | str]  # a file's digest, and a thumbnail (h, w, 3) or why it is unreadable
FINDINGS = {
    "kept": "kept",
    "duplicate": "of them exact copies of another",
    "colorless": "of them nearly colorless",
    "unreadable": "left out: unreadable",
    "leak": "left out: training has the same",
}


class DataError(ValueError):
    """The images cannot be used as asked; the message says why and what to do."""


class Entry(NamedTuple):
    """What became of a file: a line of the manifest."""

    path: str  # below the root
    part: str  # train, val or test; empty where the file's content would decide and cannot be read
    status: str  # kept; unreadable; or leak: the same bytes stand in an earlier part
    reason: str  # why it is unreadable
    duplicate_of: str  # the first file with the same bytes
    colorfulness: str  # as colorization.metrics measures it, of a thumbnail; empty if unreadable

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield all there is to say of the file: a key of FINDINGS, and the particulars."""
        yield self.status, self.reason or f"same as {self.duplicate_of}"
        if self.status == "kept" and self.duplicate_of:
            yield "duplicate", f"same as {self.duplicate_of}"
        if self.status == "kept" and float(self.colorfulness) < COLORLESS:
            yield "colorless", f"colorfulness {self.colorfulness}"


class File(NamedTuple):
    path: str  # below the root
    part: Part | None  # None: its content decides
    num_bytes: int = 0  # this and the others are 0 if it cannot be looked at
    modified: int = 0  # ns
    changed: int = 0  # ns; unlike the former, also by chmod and by cp -p


class ImageStore:
    """The kept images of a folder, each a row of uint8 on disk, read on demand.

    Args:
        folder: built by :func:`open_store`.
        size: height and width of its images, in pixels.

    Attributes:
        pixels: (N, size, size, 3) uint8, read-only; a row for each line of the manifest, of which
            those of ``rows`` are images.
        rows: the rows of the kept files of each part.
        counts: the number of files for each finding (see FINDINGS) and part.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        index = json.loads((folder / INDEX_FILE).read_text())
        self.counts: dict[str, dict[str, int]] = index["counts"]
        self.rows = {part: np.array(rows, dtype=np.int64) for part, rows in index["rows"].items()}
        self.pixels: NDArray[np.uint8] = np.memmap(
            folder / PIXELS_FILE, dtype=np.uint8, mode="r", shape=(index["num_files"], size, size, 3)
        )
        self._file = os.open(folder / PIXELS_FILE, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[type["ImageStore"], tuple[Path, int]]:
        return ImageStore, (self.folder, self.size)  # a worker maps the file; pickling the map would copy the pixels

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy images (len(rows), size, size, 3); what is taken from ``pixels`` would stay in the process's memory."""
        images = np.empty((len(rows), *self.pixels.shape[1:]), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            if os.preadv(self._file, [image], row * image.nbytes) < image.nbytes:
                raise DataError(f"'{self.folder}' is damaged. Delete it: it will be built again.")
        return images

    @property
    def parts(self) -> list[str]:
        """The parts to which files belong; "" is that of files whose content would decide and cannot be read."""
        return sorted(set().union(*self.counts.values()), key=[*self.rows, ""].index)

    def summary(self) -> str:
        """Say in a short table how many images of each part were kept, and what was found wrong."""
        lines = ["".join(f"{part or 'unknown':>10}" for part in self.parts)]
        for finding, meaning in FINDINGS.items():
            if numbers := self.counts.get(finding):
                lines.append("".join(f"{numbers.get(part, 0):10,}" for part in self.parts) + f"  {meaning}")
        return "\n".join(lines)

    def paths(self) -> list[str]:
        """Name the file of each row of ``pixels``, by its path below the root."""
        return [entry.path for entry in read_manifest(self.folder)]

    def findings(self) -> Iterator[str]:
        """Name each file of which more is to say than that it is kept."""
        for entry in read_manifest(self.folder):
            for finding, particulars in entry.findings():
                if finding != "kept":
                    yield f"{finding:12}{entry.path}  ({particulars})"


def open_store(root: Path, size: int, layout: Mapping[str, Part] | None) -> ImageStore:
    """Find the store of a folder of images, or build it; the folder itself is only read.

    A store is found again as long as the files' names, sizes and times, and the arguments, stay the same.

    Args:
        root: searched for images with all its subfolders; links are followed.
        size: height and width in pixels to which every image is scaled and cropped.
        layout: the folder below ``root`` of each part; None splits all images 80 / 10 / 10 by a hash of their
            bytes, so that a file keeps its part whatever is added, and duplicates never fall into two parts.

    Raises:
        DataError: if ``root`` is not there, no image can be used, or the disk is too small for the store.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder '{root}'. Set data.init_args.root to the folder of your images.")
    gc.disable()  # or it would look for cycles in all that was imported, for a third of the time with 100,000 files
    try:
        files = [
            file
            for folder, part in (layout.items() if layout else [("", None)])
            for file in sorted(find_images(root, folder, part))
        ]
    finally:
        gc.enable()
    if not files:
        where = " or ".join(f"'{root / folder}'" for folder in layout or [""])
        raise DataError(f"No image in {where}: no file there ends in {', '.join(sorted(SUFFIXES))}.")
    fingerprint = hashlib.blake2b(repr((FORMAT, size, root.resolve(), files)).encode("utf-8", "surrogateescape"))
    name = f"{root.resolve().name}-{size}px-{fingerprint.hexdigest()[:16]}"
    folder = build_once(cache_folder() / name, lambda folder: _build(folder, root, size, files))
    return ImageStore(folder, size)


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """View pixels (N, H, W, 3) as a tensor (N, 3, H, W), in the channels-last layout in which networks train faster."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def read_manifest(folder: Path) -> Iterator[Entry]:
    """Read what became of every file, ordered by part and path."""
    with (folder / MANIFEST_FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        reader = csv.reader(lines)
        next(reader)
        yield from map(Entry._make, reader)


def find_images(root: Path, folder: str, part: Part | None) -> Iterator[File]:
    """Yield everything in ``folder``, below ``root``, that is named like an image.

    A subfolder that cannot be listed, or a link that leads nowhere, is yielded too: the manifest will say why.
    """
    seen = set()  # a link may lead back up
    pending = [folder]
    while pending:
        path = pending.pop()
        prefix = os.path.join(path, "")
        subfolders = []
        try:
            status = os.stat(root / path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / path) as listing:
                for entry in listing:
                    if entry.name.startswith("."):
                        continue
                    below = prefix + entry.name
                    is_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                    try:
                        if entry.is_dir():
                            subfolders.append(below)
                        elif is_image:
                            status = entry.stat()
                            yield File(below, part, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    except OSError:
                        if is_image:
                            yield File(below, part)
        except OSError:
            yield File(path, part)
        pending += sorted(subfolders)


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


def _build(folder: Path, root: Path, size: int, files: list[File]) -> None:
    needed, free = len(files) * 3 * size**2, shutil.disk_usage(folder).free
    no_room = DataError(
        f"{len(files):,} images at {size} px take {needed / 1e9:.1f} GB, but '{folder.parent}' has "
        f"{free / 1e9:.1f} GB free. Free some, raise your quota, or set PIGMENT_CACHE to a folder on a larger disk."
    )
    if needed > free:
        raise no_room

    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with (
        (folder / PIXELS_FILE).open("wb") as pixels,
        (folder / MANIFEST_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        manifest = csv.writer(lines)
        manifest.writerow(Entry._fields)
        pool, stopped, num_threads = ThreadPool(), Event(), torch.get_num_threads()
        torch.set_num_threads(1)  # more would wait for cores that are busy decoding
        try:
            pixels.truncate(needed)
            judged = pool.imap(partial(_judge, root, size, pixels.fileno(), stopped), enumerate(files), CHUNK)
            entries = _entries(files, judged)
            for row, entry in enumerate(tqdm(entries, f"Reading {root.name}", len(files), unit=" images")):
                manifest.writerow(entry)
                for finding, _ in entry.findings():
                    counts[finding][entry.part] += 1
                if entry.status == "kept":
                    rows[entry.part].append(row)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise no_room from None
            raise
        finally:
            torch.set_num_threads(num_threads)
            stopped.set()
            pool.terminate()
            pool.join()  # before a thread writes to whatever file has the closed one's number next
    if not any(rows.values()):
        reasons = [f"{entry.path}: {entry.reason}" for entry in read_manifest(folder)][:3]
        raise DataError(f"None of the {len(files):,} images in '{root}' can be used ({'; '.join(reasons)}).")
    (folder / INDEX_FILE).write_text(json.dumps({"num_files": len(files), "rows": rows, "counts": counts}))


def _judge(root: Path, size: int, pixels: int, stopped: Event, numbered_file: tuple[int, File]) -> Judged:
    """Write the pixels of a file to their row, and return its digest, and a thumbnail or what is wrong with it."""
    row, file = numbered_file
    digest = b""
    if stopped.is_set():
        return digest, "stopped"
    try:
        with open(os.path.join(root, file.path), "rb", buffering=0, opener=_without_waiting) as content:
            if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
                raise ValueError("a pipe or a device, not a file")  # reading it might never end
            data = content.readall()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if not data:
            raise ValueError("empty file")
        image = decode(data, size)
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        return digest, reason(error)
    if os.pwrite(pixels, image.data, row * image.nbytes) < image.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    thinning = math.ceil(size / THUMBNAIL)
    return digest, image[::thinning, ::thinning].copy()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe would else wait for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _entries(files: Iterable[File], judged: Iterable[Judged]) -> Iterator[Entry]:
    """Yield what the manifest says of each file."""
    first_with: dict[bytes, tuple[str, str]] = {}  # digest: path and part
    files_and_judged = zip(files, judged, strict=True)
    while block := list(islice(files_and_judged, BLOCK)):
        thumbnails = [thumbnail for _, (_, thumbnail) in block if not isinstance(thumbnail, str)]
        colors = iter(colorfulness(as_images(np.array(thumbnails)) / 255).tolist() if thumbnails else ())
        for file, (digest, thumbnail) in block:
            part = file.part or (_part_of(digest) if digest else "")
            if isinstance(thumbnail, str):
                yield Entry(file.path, part, "unreadable", thumbnail, "", "")
            else:
                original, original_part = first_with.setdefault(digest, (file.path, part))
                status = "kept" if original_part == part else "leak"
                duplicate_of = "" if original == file.path else original
                yield Entry(file.path, part, status, "", duplicate_of, f"{next(colors):.1f}")


def _part_of(digest: bytes) -> Part:
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"
