"""Files that are written whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from system.errors import PigmentError, reason

LONGEST_NAME = 50  # characters of up to four bytes; file systems stop at 255 bytes


@contextmanager
def writing(path: Path, mode: str = "wb", **how: Any) -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` once the block ends without an error.

    It is flushed to disk before it is renamed. Whenever the program or the machine stops, ``path`` is either the old
    file or the new one, never half of it. A kill can leave a hidden ``.<name>.partial``, which the next write reuses.

    Args:
        path: its folder is created if needed.
        mode: passed to :func:`open`, like the rest.

    Raises:
        PigmentError: if it cannot be written, for example because the disk is full.
    """
    partial = path.with_name(f".{path.name[-LONGEST_NAME:]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open(mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save can mask the former with the latter
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise PigmentError(f"'{path}' cannot be written and is unchanged: {reason(cause)}") from error
    finally:
        with suppress(OSError):  # already renamed, or never created
            partial.unlink()
    sync_folder(path.parent)


def make_folders(files: Iterable[Path]) -> None:
    """Create the folders of files to be written, and try to write to each, before the work that makes the files.

    Raises:
        PigmentError: if a folder cannot be written to, or stands where a file should.
    """
    files = list(files)
    for file in files:
        if file.is_dir():
            raise PigmentError(f"cannot write to '{file}': it is a folder, must be a file. Choose a different --out.")
    for folder in dict.fromkeys(file.parent for file in files):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise PigmentError(f"cannot write to '{folder}': {reason(error)}. Choose a different --out.") from error


def link(source: Path, path: Path) -> None:
    """Give a file a second name, as atomically as :func:`writing` does; where hard links fail, make a copy."""
    partial = path.with_name(f".{path.name[-LONGEST_NAME:]}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        with source.open("rb") as original, writing(path) as copy:
            shutil.copyfileobj(original, copy)
    else:
        partial.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this
            raise
    finally:
        os.close(descriptor)
