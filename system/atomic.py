"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from system.errors import PigmentError, reason

LONGEST_NAME = 50  # characters of up to four bytes; file systems stop at 255 bytes


@contextmanager
def writing(path: Path, mode: str = "wb", **how: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of ``path`` once the block has ended without an error.

    It is flushed to the disk before it is renamed. Whenever the program or the machine stops, ``path`` is what it was
    before or the new file, never half of it. A kill can leave a hidden ``.<name>.partial``, which the next write
    reuses.

    Args:
        path: its folder is created if need be.
        mode: of :func:`open`, which also takes the rest.

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
    except (OSError, RuntimeError) as error:  # torch.save can hide the former behind the latter
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise PigmentError(f"'{path}' cannot be written, and is what it was before: {reason(cause)}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never created
            partial.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
