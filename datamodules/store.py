"""A folder of images, judged and decoded once: pixels on disk, and a manifest that says what became of every file."""

import csv
import errno
import gc
import hashlib
import json
import os
import shutil
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from colorization.files import SUFFIXES
from datamodules.cache import build_once, cache_folder
from datamodules.judge import Judged, judge

PIXELS_FILE, MANIFEST_FILE, INDEX_FILE = "pixels.uint8", "manifest.csv", "index.json"
FORMAT = 3  # raised when stores that older code built no longer serve
COLORLESS = 5.0  # below it, an image is called nearly colorless: gray, or gray with the tint of old paper

Part = Literal["train", "val", "test"]
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
    try:
        with (
            (folder / PIXELS_FILE).open("wb") as pixels,
            (folder / MANIFEST_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
            closing(judge(root, [file.path for file in files], size, folder / PIXELS_FILE)) as judged,
        ):
            pixels.truncate(needed)
            manifest = csv.writer(lines)
            manifest.writerow(Entry._fields)
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
    if not any(rows.values()):
        reasons = [f"{entry.path}: {entry.reason}" for entry in read_manifest(folder)][:3]
        raise DataError(f"None of the {len(files):,} images in '{root}' can be used ({'; '.join(reasons)}).")
    (folder / INDEX_FILE).write_text(json.dumps({"num_files": len(files), "rows": rows, "counts": counts}))


def _entries(files: Iterable[File], judged: Iterable[Judged]) -> Iterator[Entry]:
    """Yield what the manifest says of each file."""
    first_with: dict[bytes, tuple[str, str]] = {}  # digest: path and part
    for file, (digest, found) in zip(files, judged, strict=True):
        if isinstance(found, OSError):
            raise found
        part = file.part or (_part_of(digest) if digest else "")
        if isinstance(found, str):
            yield Entry(file.path, part, "unreadable", found, "", "")
        else:
            original, original_part = first_with.setdefault(digest, (file.path, part))
            status = "kept" if original_part == part else "leak"
            duplicate_of = "" if original == file.path else original
            yield Entry(file.path, part, status, "", duplicate_of, f"{found:.1f}")


def _part_of(digest: bytes) -> Part:
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"
