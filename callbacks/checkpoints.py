"""How a checkpoint gets onto the disk."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class CheckpointError(OSError):
    """A checkpoint cannot be written; the message says which, and why."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target, and put it in the target's place once it is on the disk.

    Whenever the program or the machine stops, the target is what it was before, or the new checkpoint, and never
    half of it. What a stopped save leaves is the hidden ``.<name>.partial``, which the next save takes over.

    Raises:
        CheckpointError: if it cannot be written, say because the disk is full; the target stays what it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:  # torch can hide the former behind the latter
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise CheckpointError(
                f"'{target}' cannot be written, and is what it was before: {reason.strerror}"
            ) from error
        finally:
            with suppress(OSError):  # it has been renamed, or could not even be created
                partial.unlink()
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files onto the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
