"""A run's metrics on disk and in Weights & Biases, which continue where they stopped.

After a kill, a run recomputes, to the last digit, what it had logged since its last checkpoint. ``metrics.csv`` forgets
those rows and logs them again. Weights & Biases cannot forget, so it is sent nothing twice, and gets from
``metrics.csv`` what had not reached it.
"""

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from system.atomic import writing
from system.errors import PigmentError, reason

METRICS_FILE = "metrics.csv"
UPLOAD_SECONDS = 60  # for W&B at the end of a run; it would wait forever for a dead server
STEP = "trainer/global_step"  # Lightning's name for the step in Weights & Biases
READ_LOG = ("-m", "wandb", "leet", "inspect", "--json")  # W&B's own command, which it may rename
# what W&B's table of runs shows of a metric, and the axis of its chart; only those without a train/ twin go by epoch
BEST: dict[str, tuple[Literal["min", "max"], str]] = {
    **{f"val/{name}": ("min", STEP) for name in ("loss", "mse", "mae", "bits_per_dim")},
    "val/ciede2000": ("min", "epoch"),
    **{f"val/{name}": ("max", "epoch") for name in ("psnr", "ssim")},
}
Event = tuple[int | None, frozenset[str]]  # a step, and the names that were logged then


class ResumableCSVLogger(Logger):
    """``metrics.csv``, with a row whenever something is logged.

    Lightning's own logger would begin by deleting the file of the run that it continues.

    Args:
        save_dir: folder of the file; train.py sets it to the run's folder.
    """

    name = version = ""  # one per folder

    def __init__(self, save_dir: str = "") -> None:
        super().__init__()
        self.path = Path(save_dir, METRICS_FILE)

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged at ``step`` or later, and rows that a stop damaged."""
        if self.path.exists():
            self._write([row for row in read_metrics(self.path) if int(row["step"]) < step])

    @cached_property
    def logged(self) -> set[Event]:
        return {(int(row.pop("step")), frozenset(row)) for row in read_metrics(self.path)}

    @cached_property
    def columns(self) -> list[str]:
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        event, row = (int(step or 0), frozenset(metrics)), {"step": str(step or 0), **metrics}
        if event in self.logged:
            return
        if self.path.exists() and row.keys() <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could lose rows that the next checkpoint counts on
            self.logged.add(event)
        else:
            self._write([*read_metrics(self.path), row])

    def _write(self, rows: list[Any]) -> None:
        with writing(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, sorted({"step"}.union(*rows)))
            writer.writeheader()
            writer.writerows(rows)
        for name in ("logged", "columns"):  # computed again on next use
            self.__dict__.pop(name, None)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore them: they are in config.yaml."""


class ResumableWandbLogger(WandbLogger):
    """Weights & Biases, where a run with the id (``version``) of an earlier one continues its curves."""

    logged: frozenset[Event] | None = None  # by the earlier run; None until that is known
    next_step: int | None = None  # W&B's own count of log calls, which an offline run restarts at 0
    best_before: dict[str, float]  # by metric, from before the run went on, until it is beaten

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self.logged is None:
            self._catch_up(self.experiment)
        if (step, frozenset(metrics)) not in (self.logged or ()):
            self.experiment.log({**metrics, STEP: step}, step=self.next_step, commit=True)
            self.next_step = None
            self._keep_best(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore them: train.py gives W&B the config, which has them under the same names."""

    def _keep_best(self, metrics: Mapping[str, Any]) -> None:
        """Let the summary show the best value of the whole run: W&B forgets it when a run goes on."""
        for name in self.best_before.keys() & metrics.keys():
            how, before = BEST[name][0], self.best_before[name]
            if metrics[name] < before if how == "min" else metrics[name] > before:
                del self.best_before[name]  # from now on, W&B is right
            else:
                self.experiment.summary[name] = {how: before}

    def _catch_up(self, run: Any) -> None:
        """Learn what W&B has of an earlier run, and log what only ``metrics.csv`` has."""
        self.best_before = {}
        shown = {name: run.summary.get(name) for name in BEST}  # define_metric would make it 0
        for name, (how, axis) in BEST.items():
            run.define_metric(name, summary=how, step_metric=axis)
        folder, here = Path(self.save_dir or ""), Path(run.dir).parent.name
        logs = [log for log in folder.glob(f"wandb/*run-*-{run.id}/*.wandb") if log.parent.name != here]
        logs.sort(key=lambda log: log.parent.name.removeprefix("offline-"))  # by time
        there: list[Mapping[str, Any]] = []
        try:
            there += [item for log in logs for item in read_wandb(log)]
            if not run.offline:
                there = [item for item in there if item["_step"] < run.starting_step]  # later ones never reached it
                if len(there) < run.starting_step:  # it has more, from another machine
                    there += wandb.Api().run(run.path).scan_history(use_cache=False)
        except (OSError, ValueError, subprocess.CalledProcessError, wandb.Error) as error:  # no reason to end a run
            rank_zero_info(f"W&B: what it already has cannot be read, so points may appear twice ({reason(error)}).")
        if run.offline:
            self.next_step = len(there) or None
        self.logged = frozenset(map(as_event, there))
        rows = read_metrics(folder / METRICS_FILE) if logs else []
        for name, (how, _) in BEST.items():
            values = [float(row[name]) for row in rows if name in row]
            if isinstance(best := shown[name], dict):  # on another machine, there are no rows
                values.append(best[how])
            if values := [value for value in values if math.isfinite(value)]:
                self.best_before[name] = min(values) if how == "min" else max(values)
                run.summary[name] = {how: self.best_before[name]}
        for row in rows:
            self.log_metrics({name: number(row[name]) for name in row.keys() - {"step"}}, int(row["step"]))
        self.logged |= {(int(row["step"]), frozenset(row.keys() - {"step"})) for row in rows}


def need_server(why: str) -> None:
    """Log in to W&B.

    Raises:
        PigmentError: if W&B is offline. It begins with ``why``, what the server is needed for.
    """
    if because := go_offline_if_necessary():
        raise PigmentError(
            f"{why}, but W&B is offline: {because}. Run wandb login, or unset WANDB_MODE if you are logged in, then "
            "run this again."
        )


@rank_zero_only
def go_offline_if_necessary(mode: Any = None) -> str | None:
    """Make W&B write only to the run's folder if it cannot or should not upload, and return why.

    Args:
        mode: what the run's config says; None leaves it to W&B's own settings.
    """
    here = str(Path(__file__).parents[1])
    settings = wandb.Settings(
        git_root=here,  # otherwise it looks for the commit in the run's folder
        finish_timeout=UPLOAD_SECONDS,
        x_transaction_log_flush_interval=1,  # seconds that a kill can lose
    )
    try:
        if mode:
            settings.mode = mode
        mode = wandb.setup(settings).settings.mode
    except ValueError as error:  # pydantic's; its second and third lines name the setting and the reason
        what = ": ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise PigmentError(f"W&B refuses a setting from a WANDB_... variable or its settings file: {what}") from error
    try:
        # without prompt=False it asks on a terminal; it waits 10 s for the server
        if mode not in ("online", "offline") or (mode == "online" and wandb.login(prompt=False)):
            return None
        because = "as its settings say" if mode == "offline" else "nobody is logged in"
    except wandb.Error as error:
        because = reason(error).rstrip(".")
    # silent: our one line says what W&B would say in many
    wandb.termsetup(wandb.setup(wandb.Settings(mode="offline", silent=True)).settings, None)
    return because


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a ``metrics.csv`` without their empty columns; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))  # a power cut may have cut the last one short
    return [{name: value for name, value in row.items() if value} for row in rows if (row["step"] or "").isdigit()]


def sync_command(folder: Path) -> str:
    """Return the command that uploads what was logged offline in a run's folder."""
    return f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"


def find_in_wandb(folder: Path) -> str | None:
    """Return where W&B has a run: at an address, which the run says at its end, or "online" until then.

    It is "offline" if some of what was logged has not been uploaded yet, and None if nothing was logged there.
    """
    offline = folder.glob("wandb/offline-run-*")
    if any(not any(log.glob("*.wandb.synced")) for log in offline):
        return "offline"
    logs = [log.read_text(errors="replace") for log in sorted(folder.glob("wandb/run-*/files/output.log"))]
    said = re.findall(r"^W&B +(https?://\S+)$", "\n".join(logs), re.MULTILINE)
    return said[-1] if said else "online" if any(folder.glob("wandb/run-*")) else None


def number(text: str) -> float | str:
    """Return a text as a number if it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def read_wandb(log: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, in order, from a transaction log of W&B, which a kill may have cut off."""
    command = [sys.executable, *READ_LOG, str(log)]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if item := json.loads(line).get("history", {}).get("item"):
            yield item


def as_event(item: Mapping[str, Any]) -> Event:
    """Leave out what W&B adds to what was logged, and the empty columns that its server may list."""
    found = {name for name, value in item.items() if value is not None and not name.startswith("_")}
    images = {name.removesuffix("._type") for name in found if name.endswith("._type")}
    names = {name for name in found if name.rpartition(".")[0] not in images}
    return item.get(STEP), frozenset((names | images) - {STEP})
