"""A folder of images, decoded once: pixels on disk, and a manifest that says what became of every file."""

import csv
import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import weakref
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.cache import build_once, cache_folder
from images.colorfulness import COLORLESS, colorfulness
from images.files import PASSED_OVER, SUFFIXES, find_images, open_file, suffix
from images.reading import read_square
from system.errors import PigmentError, reason, shown
from system.signals import deferred

PIXELS_FILE, MANIFEST_FILE, INDEX_FILE = "pixels.uint8", "manifest.csv", "index.json"
FORMAT = 5  # increased when stores built by older code no longer fit
CHUNK = 32  # files given to a process at a time
ENOUGH_TO_FORK, ENOUGH_TO_SPAWN = 256, 4096  # files; fewer would be done before other processes are ready
NOTES = ("profile", "page", "damage")  # what may be noted when an image is read, see images.writing.Notes
THUMBNAIL = 32  # pixels, enough to tell how colorful an image is

Part = Literal["train", "val", "test"]
FINDINGS = {
    "kept": "kept",
    "duplicate": "including exact copies of another",
    "colorless": "including nearly colorless ones",
    "profile": "including ones converted to sRGB from another color profile",
    "page": "including the largest of several pages, or the first of several frames",
    "damage": "including ones read without their damaged metadata",
    "unreadable": "left out: unreadable",
    "passed over": "left out: in a format that is not read",
    "leak": "left out: also in training",
}


class Entry(NamedTuple):
    """What became of a file: a row of the manifest."""

    path: str  # below the root
    part: str  # train, val or test; empty if the file's content would decide but cannot be read
    status: str  # kept; unreadable; passed over; or leak: an earlier part has the same bytes
    reason: str = ""  # why it was not read
    duplicate_of: str = ""  # the first file with the same bytes
    colorfulness: str = ""  # of a thumbnail, see images.colorfulness; empty if it was not read
    profile: str = ""  # what its colors were converted from, if they were
    page: str = ""  # which page or frame it is, if there are several
    damage: str = ""  # what damaged part was left out, if any

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield all there is to say about the file: a key of FINDINGS, and the particulars."""
        yield self.status, self.reason or f"same as {self.duplicate_of}"
        if self.status == "kept" and self.duplicate_of:
            yield "duplicate", f"same as {self.duplicate_of}"
        if self.status == "kept" and float(self.colorfulness) < COLORLESS:
            yield "colorless", f"colorfulness {self.colorfulness}"
        for note in NOTES:
            if self.status == "kept" and getattr(self, note):
                yield note, getattr(self, note)


class File(NamedTuple):
    """A file to read, and what tells whether it has changed."""

    path: str  # below the root
    part: Part | None  # None: its content decides
    version: tuple[int, ...] = ()  # its size and times, see images.files.Found


class Decoded(NamedTuple):
    """A file whose pixels, if it can be read, are in the store."""

    digest: bytes  # of its content; empty if unreadable
    colorfulness: float
    notes: Mapping[str, str] = {}  # see NOTES
    fault: str = ""  # why it cannot be read
    disk: OSError | None = None  # what is wrong with the store's own disk


class ImageStore:
    """The kept images of a folder, each a row of uint8 on disk, read on demand.

    Args:
        folder: built by :func:`open_store`.
        size: height and width of its images, in pixels.

    Attributes:
        pixels: (N, size, size, 3) uint8, read-only; a row for each row of the manifest. Only ``rows`` hold images.
        rows: the rows of each part's kept files.
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
        return ImageStore, (self.folder, self.size)  # a worker maps the file itself; pickling the map would copy it

    def read(self, rows: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        """Read rows into ``images`` (len(rows), size, size, 3); pages read through ``pixels`` would stay in memory."""
        for image, row in zip(images, rows.tolist(), strict=True):
            if os.preadv(self._file, [image], row * image.nbytes) < image.nbytes:
                raise PigmentError(f"'{self.folder}' is damaged. Delete it: it will be built again.")

    @property
    def parts(self) -> list[str]:
        """The parts that files belong to; "" if their content would decide but cannot be read."""
        return sorted(set().union(*self.counts.values()), key=[*self.rows, ""].index)

    def summary(self) -> str:
        """Return a short table: how many images of each part were kept, and what was found wrong."""
        lines = ["".join(f"{part or 'unknown':>10}" for part in self.parts)]
        for finding, meaning in FINDINGS.items():
            if numbers := self.counts.get(finding):
                lines.append("".join(f"{numbers.get(part, 0):10,}" for part in self.parts) + f"  {meaning}")
        return "\n".join(lines)

    def paths(self) -> list[str]:
        """Return the path, below the root, of the file behind each row of ``pixels``."""
        return [entry.path for entry in read_manifest(self.folder)]

    def findings(self) -> Iterator[str]:
        """Yield a line for each finding about a file other than ``kept``."""
        for entry in read_manifest(self.folder):
            for finding, particulars in entry.findings():
                if finding != "kept":
                    yield f"{finding:12}{entry.path}  ({particulars})"


def open_store(root: Path, size: int, layout: Mapping[str, Part] | None) -> ImageStore:
    """Find the store of a folder of images, or build it; the folder itself is only read.

    A store is found again as long as the arguments and the files' names, sizes and times stay the same.

    Args:
        root: searched for images with all its subfolders; links are followed.
        size: height and width in pixels that every image is scaled and cropped to.
        layout: the part that each folder below ``root`` holds; None splits all images 80 / 10 / 10 by a hash of their
            bytes: a file keeps its part whatever is added, and duplicates never fall into different parts.

    Raises:
        PigmentError: if ``root`` does not exist, no image can be used, or the disk is too small for the store.
    """
    if not root.is_dir():
        raise PigmentError(f"there is no folder '{root}': root must name the folder of your images")
    files = [
        File(os.path.join(folder, found.path).rstrip(os.sep), part, found[1:])
        for folder, part in (layout.items() if layout else [("", None)])
        for found in sorted(find_images(root / folder))
    ]
    if not files:
        where = " or ".join(f"'{root / folder}'" for folder in layout or [""])
        raise PigmentError(f"no image in {where}: no file there ends in {', '.join(sorted(SUFFIXES))}.")
    fingerprint = hashlib.blake2b(repr((FORMAT, size, root.resolve(), files)).encode("utf-8", "surrogateescape"))
    name = f"{root.resolve().name}-{size}px-{fingerprint.hexdigest()[:16]}"
    folder = build_once(cache_folder() / name, lambda folder: _build(folder, root, size, files))
    return ImageStore(folder, size)


def read_manifest(folder: Path) -> Iterator[Entry]:
    """Read what became of every file, ordered by part and path."""
    with (folder / MANIFEST_FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        reader = csv.reader(lines)
        next(reader)
        yield from map(Entry._make, reader)


def _build(folder: Path, root: Path, size: int, files: list[File]) -> None:
    needed, free = len(files) * 3 * size**2, shutil.disk_usage(folder).free
    no_room = PigmentError(
        f"{len(files):,} images at {size} px take {needed / 1e9:.1f} GB, but '{folder.parent}' has "
        f"{free / 1e9:.1f} GB free. Free some, raise your quota, or set PIGMENT_CACHE to a folder on a larger disk."
    )
    if needed > free:
        raise no_room

    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    try:
        with (
            (folder / PIXELS_FILE).open("wb") as pixels,
            (folder / MANIFEST_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
            closing(decode_all(root, [file.path for file in files], size, folder / PIXELS_FILE)) as decoded,
        ):
            pixels.truncate(needed)
            manifest = csv.writer(lines)
            manifest.writerow(Entry._fields)
            entries = _entries(files, decoded)
            for row, entry in enumerate(tqdm(entries, f"Reading {shown(root.name)}", len(files), unit=" images")):
                manifest.writerow(entry)
                for finding, _ in entry.findings():
                    counts[finding][entry.part] += 1
                if entry.status == "kept":
                    rows[entry.part].append(row)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise no_room from None
        raise
    if not any(rows.values()):
        reasons = [f"{entry.path}: {entry.reason}" for entry in read_manifest(folder)][:3]
        raise PigmentError(f"none of the {len(files):,} images in '{root}' can be used ({'; '.join(reasons)})")
    (folder / INDEX_FILE).write_text(json.dumps({"num_files": len(files), "rows": rows, "counts": counts}))


def _entries(files: Iterable[File], decoded: Iterable[Decoded]) -> Iterator[Entry]:
    """Yield what the manifest says about each file."""
    first_with: dict[bytes, tuple[str, str]] = {}  # digest: path and part
    for file, (digest, color, notes, fault, disk) in zip(files, decoded, strict=True):
        if disk:
            raise disk
        part = file.part or (_part_of(digest) if digest else "")
        if fault:
            status = "passed over" if suffix(file.path) in PASSED_OVER else "unreadable"
            yield Entry(file.path, part, status, reason=fault)
        else:
            original, original_part = first_with.setdefault(digest, (file.path, part))
            status = "kept" if original_part == part else "leak"
            duplicate_of = "" if original == file.path else original
            yield Entry(file.path, part, status, "", duplicate_of, f"{color:.1f}", **notes)


def _part_of(digest: bytes) -> Part:
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def decode_all(root: Path, paths: list[str], size: int, pixels: Path) -> Generator[Decoded, None, None]:
    """Decode image files, write each readable one's pixels to its row, and yield in the order of ``paths``.

    Many files are divided among one process per core; threads would wait for each other in the Python parts of Pillow.

    Args:
        root: folder of the files.
        paths: of the files, below ``root``.
        size: height and width of the decoded images, in pixels.
        pixels: a file with room for (len(paths), size, size, 3) uint8.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a process that is not forked imports everything again
    enough = ENOUGH_TO_FORK if multiprocessing.get_start_method() == "fork" else ENOUGH_TO_SPAWN
    chunks = DataLoader(
        Decoder(root, paths, size, pixels),
        batch_size=CHUNK,
        num_workers=min(num_cores, math.ceil(len(paths) / CHUNK)) if len(paths) >= enough else 0,
        worker_init_fn=leave_group,
        collate_fn=as_it_is,
        generator=torch.Generator(),  # otherwise it draws from training's
    )
    with deferred():
        decoded = iter(chunks)
    yield from chain.from_iterable(decoded)


class Decoder(Dataset[Decoded]):
    """Image files, each decoded into its row of the store on request."""

    def __init__(self, root: Path, paths: list[str], size: int, pixels: Path) -> None:
        self.root, self.paths, self.size, self.pixels = root, paths, size, pixels
        self.thinning = math.ceil(size / THUMBNAIL)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, rows: list[int]) -> list[Decoded]:
        side = math.ceil(self.size / self.thinning)
        thumbnails = np.zeros((len(rows), side, side, 3), np.uint8)
        with self.pixels.open("r+b", buffering=0) as pixels:
            decoded = [
                self._decode(row, pixels.fileno(), thumbnail) for row, thumbnail in zip(rows, thumbnails, strict=True)
            ]
        colors = colorfulness(torch.from_numpy(thumbnails).permute(0, 3, 1, 2) / 255).tolist()
        return [one._replace(colorfulness=color) for one, color in zip(decoded, colors, strict=True)]

    def _decode(self, row: int, pixels: int, thumbnail: NDArray[np.uint8]) -> Decoded:
        """Write a file's pixels to its row, and every n-th of them to the thumbnail."""
        digest = b""
        try:
            with open_file(os.path.join(self.root, self.paths[row])) as file:
                content = file.read()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if not content:
                raise ValueError("empty file")
            image, notes = read_square(content, self.size)
        except Exception as error:  # damaged files raise all sorts of errors
            return Decoded(digest, 0.0, fault=reason(error))
        try:
            if os.pwrite(pixels, image.data, row * image.nbytes) < image.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # returned, as a DataLoader would raise it without its errno
            return Decoded(digest, 0.0, disk=error)
        thumbnail[:] = image[:: self.thinning, :: self.thinning]
        return Decoded(digest, 0.0, notes)


def as_it_is(batch: Any) -> Any:
    """Collate nothing: a dataset returns whole batches."""
    return batch


def leave_group(worker: int) -> None:
    """Shield a worker from signals sent to every process of a terminal or job; its parent ends it, or is gone."""
    os.setpgrp()
    parent = multiprocessing.parent_process()
    # torch watches the parent from a little later on, and would take whoever has adopted the worker for it
    if parent and multiprocessing.get_start_method() == "fork" and os.getppid() != parent.pid:
        os._exit(1)
