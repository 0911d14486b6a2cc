"""Which models there are: those that come with Pigment, those of runs, and those that were named."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import LightningModule

from colorization.weights import PALETTE
from datamodules.folder import FolderDataModule
from resuming.checkpoints import MODELS, load_model, read_checkpoint, training_data
from study.overview import find_runs
from system.errors import PigmentError
from vae.weights import FRUIT, LEARNED

SHIPPED = {PALETTE: "Palette · comes with Pigment", FRUIT: f"Residual VAE · comes with Pigment · {LEARNED}"}
Model = TypeVar("Model", bound=LightningModule)


class Models:
    """The models to choose from. Runs are searched for on every call, so new ones appear by themselves.

    Args:
        runs: a folder with the folders of runs, at any depth.
        given: more checkpoints.

    Raises:
        PigmentError: if one of them is not a checkpoint.
    """

    def __init__(self, runs: Path, given: Sequence[Path] = ()) -> None:
        self.runs = runs
        self.kinds = {path: type(load_model(path, LightningModule)[0]).__name__ for path in [*SHIPPED, *given]}

    def choices(self, family: type[LightningModule]) -> list[tuple[str, str]]:
        """Return label and path of each checkpoint of a family: shipped, given, then of runs, the newest first."""
        kinds = {kind.__name__ for kind in MODELS if issubclass(kind, family)}
        fixed = [(SHIPPED.get(path, str(path)), str(path)) for path, kind in self.kinds.items() if kind in kinds]
        runs = [run for run in find_runs(self.runs)[0] if run.kind in kinds and run.checkpoint.exists()]
        return fixed + [(run.label, str(run.checkpoint)) for run in runs]

    def load(self, path: str, family: type[Model]) -> Model:
        """Load one of the choices; the last few stay in memory.

        Raises:
            PigmentError: if it is no longer there, is being written, or is of a different family.
        """
        try:
            return load_version(path, family, os.stat(path).st_mtime_ns)  # type: ignore[arg-type]  # mypy: not Hashable
        except FileNotFoundError:
            raise PigmentError(f"there is no checkpoint '{path}' any more; choose a different one") from None

    def data(self, path: str, size: int) -> FolderDataModule:
        """Find what one of the choices was trained on, at a size in pixels.

        Raises:
            PigmentError: if that is not on this machine.
        """
        if Path(path) in SHIPPED:
            raise PigmentError("they do not come with Pigment")
        checkpoint = read_checkpoint(path, verify=False)
        root = checkpoint.get("datamodule_hyper_parameters", {}).get("root") or ""
        if root.startswith("kaggle:"):
            raise PigmentError(f"{root} would have to be fetched")
        return training_data(checkpoint, size)


@lru_cache(maxsize=4)
def load_version(path: str, family: type[Model], modified: int) -> Model:
    return load_model(path, family)[0].eval()
