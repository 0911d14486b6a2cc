"""The cache folder: whatever is computed from the user's files, or downloaded, exactly once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from system.atomic import LONGEST_NAME
from system.errors import PigmentError, reason


def cache_folder() -> Path:
    """Return ``$PIGMENT_CACHE``, or the system's cache folder for pigment. It can be deleted at any time."""
    given = os.environ.get("PIGMENT_CACHE")
    return Path(os.path.expanduser(given)) if given else user_cache_path("pigment")


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``build`` if it is not there yet; its name is cut to what file systems allow.

    ``build`` fills an empty folder beside it, which is renamed once complete. However it ends, and however many
    processes start together, nobody ever sees a half-filled ``folder`` or builds it twice.

    Raises:
        PigmentError: if its parent folder cannot be written to.
    """
    folder = folder.with_name(folder.name[-LONGEST_NAME:])
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_name(f"{folder.name}.lock")).acquire()  # freed by the system if its holder dies
        except OSError as error:
            raise PigmentError(
                f"cannot write to the cache folder '{folder.parent}': {reason(error)}. "
                "Set PIGMENT_CACHE to a different one."
            ) from error
        with lock:
            if not folder.is_dir():
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a builder that was killed
                partial.mkdir()
                try:
                    build(partial)
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return folder
