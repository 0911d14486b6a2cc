"""Which models there are: those that come with Pigment, those of runs, and those that were named."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from lightning.pytorch import LightningModule

from colorization.weights import PALETTE
from resuming.checkpoints import MODELS, load_model
from resuming.loggers import BEST, METRICS_FILE, find_in_wandb
from study.runs import class_name, located, read_config, read_history
from system.errors import PigmentError, reason, shown
from vae.weights import FRUIT

SHIPPED = {PALETTE: "Palette · comes with Pigment", FRUIT: "Residual VAE · comes with Pigment"}
FIGURES = {  # heading: metric
    "val/loss": "val/loss",
    "CIEDE2000": "val/ciede2000",
    "Bits per dim": "val/bits_per_dim",
    "PSNR": "val/psnr",
}
IN_LABEL = ("CIEDE2000", "Bits per dim")
Model = TypeVar("Model", bound=LightningModule)


class Run(NamedTuple):
    """What a run's folder says of it."""

    folder: Path
    kind: str
    data: str
    seed: int | None
    num_epochs: int  # of training; 0 for a run that only validates or tests
    best: dict[str, float]  # by heading
    in_wandb: str | None  # see find_in_wandb

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def changed(self) -> float:
        """When its checkpoint was written, in seconds; before the first, when it began."""
        return (self.checkpoint if self.checkpoint.exists() else self.folder / "config.yaml").stat().st_mtime

    @property
    def label(self) -> str:
        parts = [self.kind, self.data, f"{self.num_epochs} epoch{'s' * (self.num_epochs != 1)}"]
        parts += [f"{heading} {self.best[heading]:.2f}" for heading in IN_LABEL if heading in self.best]
        return " · ".join([*parts, self.folder.name])


class Models:
    """The models that the page offers. Runs are looked for each time, so new ones appear by themselves.

    Args:
        runs: a folder with the folders of runs, at any depth.
        given: more checkpoints.

    Raises:
        PigmentError: if one of them is not a checkpoint.
    """

    def __init__(self, runs: Path, given: Sequence[Path] = ()) -> None:
        self.runs = runs
        self.kinds = {path: type(load_model(path, LightningModule)[0]).__name__ for path in [*SHIPPED, *given]}

    def find_runs(self) -> tuple[list[Run], dict[str, str]]:
        """Return all runs, the newest first, and what is wrong with each folder that cannot be used."""
        runs, left_out = [], dict[str, str]()
        for folder in run_folders(self.runs):
            try:
                str(folder).encode()  # the page is in UTF-8
                runs.append(find_run(folder))
            except Exception as error:  # half-written and damaged files raise all sorts of errors
                left_out[shown(os.path.relpath(folder, self.runs))] = reason(error)
        return sorted(runs, key=lambda run: run.changed, reverse=True), left_out

    def choices(self, family: type[LightningModule]) -> list[tuple[str, str]]:
        """Return label and path of each checkpoint of a family: shipped, given, then of runs, the newest first."""
        kinds = {kind.__name__ for kind in MODELS if issubclass(kind, family)}
        fixed = [(SHIPPED.get(path, str(path)), str(path)) for path, kind in self.kinds.items() if kind in kinds]
        runs = [run for run in self.find_runs()[0] if run.kind in kinds and run.checkpoint.exists()]
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


@lru_cache(maxsize=4)
def load_version(path: str, family: type[Model], modified: int) -> Model:
    return load_model(path, family)[0].eval()


def run_folders(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        if "config.yaml" in files:
            folders.clear()  # W&B keeps files of the same name below
            yield Path(path)


def find_run(folder: Path) -> Run:
    """Read a run, unless the files have not changed that say what it is; a damaged one raises all sorts of errors."""
    files = [folder / "config.yaml", folder / METRICS_FILE]
    files += [path for logs in ("wandb/*run-*", "wandb/run-*/files/output.log") for path in folder.glob(logs)]
    return read_run(folder, *(path.stat().st_mtime_ns if path.exists() else 0 for path in files))


@lru_cache(maxsize=1000)
def read_run(folder: Path, *versions: int) -> Run:
    config, history = read_config(folder / "config.yaml"), read_history(folder / METRICS_FILE)
    root = located(config["data"]["init_args"].get("root"))
    seed = config.get("seed_everything")
    best = {}
    for heading, metric in FIGURES.items():
        if values := [value for _, value in history.get(metric, ()) if math.isfinite(value)]:
            best[heading] = min(values) if BEST[metric][0] == "min" else max(values)
    return Run(
        folder,
        class_name(config["model"]),
        Path(root).name if root else "demo",
        None if isinstance(seed, bool) else seed,
        1 + max((epoch for epoch, _ in history.get("train/loss", ())), default=-1),
        best,
        find_in_wandb(folder),
    )
