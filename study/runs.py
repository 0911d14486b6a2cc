"""The folders of a study: ``<study>/<model>/seed<seed>/<run id>``, and what they hold."""

import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from resuming.checkpoints import TO_GO_ON, read_checkpoint
from resuming.lightning_internals import finished_epochs
from resuming.loggers import METRICS_FILE, read_metrics
from system.errors import PigmentError, reason

# data settings that do not affect the model, except root, compared by where it lies; only older runs have on_device
HOW_READ = ("root", "num_workers", "on_device", "list_files")
Curve = list[tuple[int, float]]  # (epoch, value)


class Run:
    """A model trained with one seed, in ``<study>/<model>/seed<seed>``; if that holds several runs, the newest counts.

    A damaged folder can raise any exception.
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
        """The model as it was at the end of training, or as far as it got."""
        if not self.has_begun:
            raise PigmentError("no run in it has a last.ckpt")
        return max(self.folder.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)

    @property
    def run_folder(self) -> Path:
        """The folder that train.py made."""
        return self.checkpoint.parents[1]

    @property
    def num_epochs(self) -> int:
        """How many epochs are finished; 0 before the first checkpoint."""
        if not self.has_begun:
            return 0
        return finished_epochs(read_checkpoint(self.checkpoint, TO_GO_ON, verify=False))

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.run_folder / "config.yaml")

    @property
    def images(self) -> str:
        """The images it is trained on, in words; all models of a kind must share them."""
        settings = kept(self.config)
        return f"{settings['data']}, root {settings['root']}, size {settings['size']}"

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What all seeds of a model must share."""
        return kept(self.config), self.config["trainer"]["max_epochs"]

    @property
    def seconds(self) -> float | None:
        """How long it was in training; None if ``study run`` did not train it."""
        return sum(map(float, self.times.read_text().split())) if self.times.exists() else None

    @cached_property
    def history(self) -> dict[str, Curve]:
        """Every metric by epoch."""
        return read_history(self.run_folder / METRICS_FILE)

    def check(self) -> None:
        """Raise an error, most likely a PigmentError, if it is not finished or something on disk is damaged."""
        needed = self.config["trainer"]["max_epochs"]
        if self.num_epochs < needed:
            raise PigmentError(f"not finished: {self.num_epochs} of {needed} epochs")
        if missing := {"train/loss", "val/loss"} - self.history.keys():
            raise PigmentError(f"its {METRICS_FILE} has no {' and no '.join(sorted(missing))}")
        _ = self.seconds  # raises here rather than on the page


def kept(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of model and data that a run must keep to resume, with one spelling for each."""
    data = config["data"]["init_args"]
    settings = {name: value for name, value in data.items() if name not in HOW_READ}
    return {**model_of(config), "data": class_name(config["data"]), "root": located(data.get("root")), **settings}


def model_of(config: dict[str, Any]) -> dict[str, Any]:
    return {"model": class_name(config["model"]), **config["model"]["init_args"]}


def class_name(section: dict[str, Any]) -> str:
    return section["class_path"].rpartition(".")[2]  # a package and its module both offer the class


def located(root: str | None) -> str | None:
    """Return the one real path of a folder of images; demo and Kaggle roots stay as they are."""
    if root is None or root.startswith("kaggle:"):
        return root
    return os.path.realpath(os.path.expanduser(root))


def read_config(path: Path) -> dict[str, Any]:
    """Read a config, the user's or the one that a run keeps.

    Raises:
        PigmentError: if it cannot be read, or has no model, data or ``trainer.max_epochs``.
    """
    try:
        config = yaml.safe_load(path.read_text())
        for part in (config["model"], config["data"]):
            if not isinstance(part["class_path"], str) or not isinstance(part.setdefault("init_args", {}), dict):
                raise TypeError
        int(config["trainer"]["max_epochs"])
    except OSError as error:
        raise PigmentError(f"the config '{path}' cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise PigmentError(
            f"'{path}' is not a whole config: it needs model and data, each with class_path, and trainer.max_epochs"
        ) from error
    return config


def read_history(path: Path) -> dict[str, Curve]:
    """Read every metric by epoch from a run's metrics.csv."""
    curves: dict[str, Curve] = {}
    for row in read_metrics(path):
        if "epoch" in row:  # callbacks such as LearningRateMonitor log without one
            for name in row.keys() - {"epoch", "step"}:
                with suppress(ValueError):  # text has no curve
                    point = int(float(row["epoch"])), float(row[name])
                    curves.setdefault(name, []).append(point)
    return curves


def find_runs(study: Path) -> tuple[list[Run], dict[str, str]]:
    """Return the runs of a study, by model and seed, and what is wrong with every other folder in it.

    Raises:
        PigmentError: if the study does not exist.
    """
    if not study.is_dir():
        raise PigmentError(f"there is no study '{study}'. Name its folder with --out, or train it: python -m study run")
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for folder in sorted(folders_in(study), key=by_number):
        seeds = [path for path in folders_in(folder) if re.fullmatch(r"seed\d+", path.name)]
        if seeds:
            others = [path.name for path in folders_in(folder) if path not in seeds]
            left_out |= {f"{folder.name}, {name}": "not called seed0, seed1 ..." for name in others}
        elif folder.name != "wandb":
            left_out[folder.name] = "not part of this study: nothing in it is called seed0, seed1 ..."
        runs += map(Run, sorted(seeds, key=by_number))
    for run in runs:
        if run.has_begun:
            others = [path.name for path in folders_in(run.folder) if path != run.run_folder]
            left_out |= {f"{run}, {name}": f"only the newest run counts, {run.run_folder.name}" for name in others}
    return runs, left_out


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def by_number(path: Path) -> tuple[float, str]:
    """Sort 10_... after 9_..., and names without a number last."""
    number = re.search(r"\d+", path.name)
    return int(number[0]) if number else float("inf"), path.name
