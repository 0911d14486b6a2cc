"""All runs below a folder, what each reached, and a table of them."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from resuming.loggers import BEST, METRICS_FILE, find_in_wandb
from study.runs import class_name, located, read_config, read_history
from system.errors import PigmentError, reason, shown

FIGURES = {"val/loss": "val/loss", "CIEDE2000": "val/ciede2000", "Bits per dim": "val/bits_per_dim", "PSNR": "val/psnr"}
IN_LABEL = ("CIEDE2000", "Bits per dim")
Row = dict[str, Any]  # of a table, by heading


class Run(NamedTuple):
    """What a run's folder says of it."""

    folder: Path
    kind: str  # the model's class
    recipe: str  # the model's named settings, and its learning rate
    data: str
    seed: int | None
    num_epochs: int  # of training; 0 for a run that only validates or tests
    best: dict[str, float]  # by heading
    in_wandb: str | None  # see find_in_wandb
    changed: float = 0.0  # when its checkpoint was written, in seconds; before the first, when it began

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def label(self) -> str:
        """What to call it in a list, where only the beginning may be shown."""
        best = [f"validation {heading} {self.best[heading]:.2f}" for heading in IN_LABEL if heading in self.best]
        epochs = f"{self.num_epochs} epoch{'s' * (self.num_epochs != 1)}"
        return " · ".join([self.kind, *best, epochs, self.data, self.recipe, self.folder.name])

    def row(self, root: Path) -> Row:
        """Return its row of a table; what people look for comes first, as a phone shows only a few columns."""
        return {
            "Model": self.kind,
            **{heading: self.best.get(heading) for heading in FIGURES},
            "Epochs": self.num_epochs,
            "Seed": self.seed,
            "Data": self.data,
            "When": datetime.fromtimestamp(self.changed).isoformat(" ", "minutes"),
            "W&B": self.in_wandb,
            "Run": str(self.folder.relative_to(root)),
            "Recipe": self.recipe,
        }

    def pictures(self) -> Iterator[tuple[str, Image.Image | None, str]]:
        """Yield what its film strips, curves, and latest map show, and the picture, or why it cannot be shown."""
        newest = sorted((self.folder / "media" / "latent_map").glob("*.png"))[-1:]
        films = sorted((self.folder / "media").glob("*.png"), key=lambda path: (path.stem == "curves", path))
        for path in [*films, *newest]:
            what = path.stem if path.parent.name == "media" else path.parent.name
            try:
                with Image.open(path) as image:
                    image.load()
                    yield what.replace("_", " "), image, ""
            except (OSError, SyntaxError) as error:  # being written, cut off by a kill, or just deleted
                yield str(path), None, reason(error)


def find_runs(root: Path) -> tuple[list[Run], dict[str, str]]:
    """Return all runs below a folder, the newest first, and what is wrong with each that cannot be used."""
    runs, left_out = [], dict[str, str]()
    for folder in run_folders(root):
        try:
            str(folder).encode()  # pages are in UTF-8
            runs.append(find_run(folder))
        except Exception as error:  # half-written and damaged files raise all sorts of errors
            left_out[shown(os.path.relpath(folder, root))] = reason(error)
    return sorted(runs, key=lambda run: run.changed, reverse=True), left_out


def headings_of(rows: Sequence[Row]) -> list[str]:
    """Return the headings below which at least one row has something."""
    return [heading for heading in (rows[0] if rows else ()) if any(row[heading] is not None for row in rows)]


def print_runs(root: Path) -> None:
    """Print a table of all runs below a folder, without empty columns, and to stderr why some are left out.

    Raises:
        PigmentError: if none has trained for an epoch.
    """
    runs, left_out = find_runs(root)
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    rows = [run.row(root) for run in runs if run.num_epochs]
    if not rows:
        raise PigmentError(f"no run in '{root}' has trained for an epoch; name the folder of your runs")
    headings = headings_of(rows)
    lines = [headings, *([in_text(row[heading]) for heading in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


def in_text(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else shown(value)


def run_folders(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if folder != "wandb"]  # which has files of the same name
        if "config.yaml" in files:
            folders.clear()
            yield Path(path)


def find_run(folder: Path) -> Run:
    """Read a run, unless the files have not changed that say what it is; a damaged one raises all sorts of errors."""
    files = [folder / "config.yaml", folder / METRICS_FILE]
    files += [path for logs in ("wandb/*run-*", "wandb/run-*/files/output.log") for path in folder.glob(logs)]
    run = read_run(folder, *(path.stat().st_mtime_ns if path.exists() else 0 for path in files))
    last_written = run.checkpoint if run.checkpoint.exists() else folder / "config.yaml"
    return run._replace(changed=last_written.stat().st_mtime)


@lru_cache(maxsize=1000)
def read_run(folder: Path, *versions: int) -> Run:
    config, history = read_config(folder / "config.yaml"), read_history(folder / METRICS_FILE)
    root = located(config["data"]["init_args"].get("root"))
    seed = config.get("seed_everything")
    settings = config["model"]["init_args"]
    chosen = [f"{name} {value}" for name, value in settings.items() if isinstance(value, str)]
    best = {}
    for heading, metric in FIGURES.items():
        if values := [value for _, value in history.get(metric, ()) if math.isfinite(value)]:
            best[heading] = min(values) if BEST[metric][0] == "min" else max(values)
    return Run(
        folder,
        class_name(config["model"]),
        ", ".join([*chosen, f"lr {settings['lr']:g}"]),
        Path(root).name if root else "demo",
        None if isinstance(seed, bool) else seed,
        1 + max((epoch for epoch, _ in history.get("train/loss", ())), default=-1),
        best,
        find_in_wandb(folder),
    )
