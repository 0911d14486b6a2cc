"""Find image files, and open those in formats that can be read."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dib", ".gif", ".icb", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi",
    ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
})  # fmt: skip
PASSED_OVER = frozenset({  # images too, but in formats that are not read
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".cur", ".dcr", ".dds", ".djvu", ".dng", ".emf", ".eps", ".erf", ".exr",
    ".fff", ".hdr", ".heic", ".heif", ".hif", ".icns", ".ico", ".iiq", ".jls", ".jxl", ".jxr", ".kdc", ".kra", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".ora", ".orf", ".pdf", ".pef", ".psb", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
    ".srf", ".srw", ".svg", ".svgz", ".wdp", ".wmf", ".x3f", ".xcf",
})  # fmt: skip
NAMED_LIKE_IMAGES = SUFFIXES | PASSED_OVER


class Found(NamedTuple):
    """A file that is named like an image."""

    path: str  # below the folder that was searched
    num_bytes: int = 0  # 0, like the times, if the file cannot be examined
    modified: int = 0  # ns
    changed: int = 0  # ns; unlike ``modified``, it also changes with chmod and cp -p


def suffix(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()


def find_images(root: Path, skip: Path | None = None) -> Iterator[Found]:
    """Yield every file named like an image in a folder and its subfolders; hidden ones are skipped.

    Links are followed, and each folder is searched once. Files to be passed over, subfolders that cannot be listed, and
    broken links are yielded as well: opening one raises an error that says what is wrong.

    Args:
        skip: a subfolder that is not searched.
    """
    seen = set()
    if skip and skip.is_dir() and not skip.samefile(root):
        seen.add((skip.stat().st_dev, skip.stat().st_ino))
    folders, links = [""], list[str]()  # links come last, so that a folder is found under its own name
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:  # a link may lead back up
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name, reverse=True)  # as the last is searched first
        except OSError:
            yield Found(folder)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            is_image = suffix(path) in NAMED_LIKE_IMAGES
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif is_image:
                    status = entry.stat()
                    yield Found(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            except OSError:
                if is_image:
                    yield Found(path)


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to be read.

    Raises:
        ValueError: if its format is not read, or if it is a pipe or a device, which might never end.
    """
    if suffix(path) in PASSED_OVER:  # Pillow would open some, but read only their preview
        raise ValueError(f"{suffix(path)} files are not read; save this one as JPEG, PNG, or TIFF")
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("a pipe or a device, not a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # otherwise opening a pipe waits for a writer
