"""The folders of a study: ``<study>/<model>/seed<seed>/<run id>``, and what is in them."""

import importlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.loggers import METRICS_FILE, read_metrics
from colorization import Colorizer
from vae import ConvVAE

PICTURES = "report"  # the folder of the report's pictures, beside those of the models
DATA = ("class_path", "root", "size")  # the settings of the data that all models of a kind share
HOW_READ = ("num_workers", "on_device", "list_files")  # settings of the data that change nothing of a model
Curve = list[tuple[int, float]]  # (epoch, value)


class StudyError(ValueError):
    """Something cannot be done as asked, or a run cannot be used; the message says why."""


class Run:
    """A model that is trained with a seed, in a folder of its own; of several runs there the newest counts.

    What is asked of a folder that is damaged can raise nearly anything.

    Attributes:
        folder: ``<study>/<model>/seed<seed>``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.seed = folder, folder.parent.name, int(folder.name.removeprefix("seed"))
        self.log, self.times = folder / "log.txt", folder / "seconds.txt"

    def __str__(self) -> str:
        return f"{self.model}, seed {self.seed}"

    @property
    def has_begun(self) -> bool:
        return any(self.folder.glob("*/checkpoints/last.ckpt"))

    @property
    def checkpoint(self) -> Path:
        """The model as it was at the end of training, or is so far."""
        saved = list(self.folder.glob("*/checkpoints/last.ckpt"))
        if not saved:
            raise StudyError("no run in it has a last.ckpt")
        return max(saved, key=lambda path: path.stat().st_mtime)

    @property
    def run_folder(self) -> Path:
        """That of train.py."""
        return self.checkpoint.parents[1]

    @property
    def num_epochs(self) -> int:
        """The number of epochs that are over, as the checkpoint has it."""
        loops = read_checkpoint(self.checkpoint)["loops"]
        return loops["fit_loop"]["epoch_progress"]["current"]["processed"]

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.run_folder / "config.yaml"
        try:
            return yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise StudyError(f"'{path}' cannot be read") from error

    @property
    def kind(self) -> type[Any]:
        """The model's class."""
        return load_class(self.config["model"]["class_path"])

    @property
    def data(self) -> dict[str, Any]:
        """Which images it is trained on."""
        return {name: {**self.config["data"], **self.config["data"]["init_args"]}[name] for name in DATA}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What all seeds of a model share."""
        data = {name: value for name, value in self.config["data"]["init_args"].items() if name not in HOW_READ}
        return self.config["model"], data, self.config["trainer"]["max_epochs"]

    @property
    def seconds(self) -> float | None:
        """How long it was in training; None if ``study run`` has not trained it."""
        return sum(map(float, self.times.read_text().split())) if self.times.exists() else None

    @cached_property
    def history(self) -> dict[str, Curve]:
        """The values of every metric, by epoch."""
        curves: dict[str, Curve] = {}
        for row in read_metrics(self.run_folder / METRICS_FILE):
            for name in row.keys() - {"epoch", "step"}:
                curves.setdefault(name, []).append((int(row["epoch"]), float(row[name])))
        return curves

    def check(self) -> None:
        """Raise a StudyError if it is not finished, or of no use to a report."""
        if not issubclass(self.kind, Colorizer | ConvVAE):
            raise StudyError(f"{self.kind.__name__} is neither a Colorizer nor a ConvVAE")
        needed = self.config["trainer"]["max_epochs"]
        if self.num_epochs < needed:
            raise StudyError(f"not finished: {self.num_epochs} of {needed} epochs")
        _ = self.data, self.recipe, self.seconds  # which raise if they cannot be read
        if missing := {"train/loss", "val/loss"} - self.history.keys():
            raise StudyError(f"its {METRICS_FILE} has no {' and no '.join(sorted(missing))}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a file that is not ours can raise nearly anything
        raise StudyError(f"'{path}' is damaged") from error


def load_class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(f"there is no class {class_path}") from error


def find_runs(study: Path) -> tuple[list[Run], dict[str, str]]:
    """Return the finished runs of a study, by model and seed, and what is wrong with each other folder in it.

    Raises:
        StudyError: if the study is not there.
    """
    if not study.is_dir():
        raise StudyError(f"there is no study '{study}'. Name its folder with --out, or train it: python -m study run")
    runs, left_out = [], {}
    for folder in sorted((path for path in study.iterdir() if path.is_dir()), key=by_number):
        seeds = [path for path in folder.iterdir() if re.fullmatch(r"seed\d+", path.name) and path.is_dir()]
        if not seeds and folder.name not in (PICTURES, "wandb"):
            left_out[folder.name] = "not of this study: nothing in it is called seed0, seed1 ..."
        for run in map(Run, sorted(seeds, key=by_number)):
            try:
                run.check()
                runs.append(run)
            except Exception as error:  # what is half written, or not ours, can raise nearly anything
                left_out[str(run)] = reason(error)
    return runs, left_out


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, StudyError) else f"cannot be read ({type(error).__name__}: {error})"


def by_number(path: Path) -> tuple[float, str]:
    """Sort 10_... behind 9_..., and what has no number last."""
    number = re.search(r"\d+", path.name)
    return int(number[0]) if number else float("inf"), path.name
