"""Training many models, each by train.py in a process of its own."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import torch
import yaml
from tqdm import tqdm

from callbacks.resuming import interrupt
from study.runs import Run, StudyError, reason

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "colorization").glob("*.yaml"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 1.0  # seconds between two looks at a run
OURS = {  # options of train.py, and what they are here
    "--trainer.max_epochs": "--epochs",
    "--data.init_args.root": "--root",
    "--data.init_args.size": "--size",
    "--seed_everything": "--seeds",
    "--trainer.default_root_dir": "--out",
    "--config": "--configs",
    "-c": "--configs",
    "--ckpt_path": "always last",
}


class Task(NamedTuple):
    """One model to be trained with one seed."""

    run: Run
    num_epochs: int
    settings: dict[str, dict[str, Any]]  # of data and model, that a run which is there already must have
    arguments: list[str]  # of train.py


def train_all(options: Namespace, more: list[str]) -> int:
    """Train what is not finished yet, and return the exit status: 1 if something failed.

    Raises:
        StudyError: if nothing can be trained as asked.
        Interrupted: by a signal, once the models in training have been saved.
    """
    tasks = plan(options, more)
    devices: SimpleQueue[dict[str, str]] = SimpleQueue()
    for device in visible_devices():
        devices.put(device)
    stopping = Event()
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # not SIGHUP under nohup
    handlers = {number: signal.signal(number, interrupt) for number in heeded}
    with tqdm(total=sum(task.num_epochs for task in tasks), desc="Study", unit=" epochs") as bar:

        def train(task: Task) -> str:
            device = devices.get()
            try:
                return train_one(task, device, stopping, bar)
            except Exception as error:  # of a folder that is damaged, or a full disk; the others go on
                return f"{task.run}: {reason(error)}"
            finally:
                devices.put(device)

        pool = ThreadPoolExecutor(devices.qsize())
        try:
            failures = [failure for failure in pool.map(train, tasks) if failure]
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(tasks) - len(failures)} of {len(tasks)} models are trained in '{options.out}'.")
    return 1 if failures else 0


def plan(options: Namespace, more: list[str]) -> list[Task]:
    """List what is asked for, finished or not.

    Raises:
        StudyError: if a config is not there or is none, two have the same name, or an option belongs to ``study run``.
    """
    names = [path.stem for path in options.configs]
    if len(names) > len(set(names)):
        raise StudyError("two configs have the same name, and so would their folders; rename one")
    for option in (option.partition("=")[0] for option in more):
        if option in OURS:
            raise StudyError(f"{option} is {OURS[option]} here")
    given = {name: getattr(options, name) for name in ("root", "size") if getattr(options, name) is not None}
    tasks = []
    for seed in dict.fromkeys(options.seeds):
        for path in options.configs:
            config = read_config(path)
            run = Run(options.out / path.stem / f"seed{seed}")
            arguments = [
                f"--config={path}",
                f"--seed_everything={seed}",
                f"--trainer.default_root_dir={run.folder}",
                "--trainer.enable_progress_bar=false",
                "--ckpt_path=last",
                *(f"--data.init_args.{name}={value}" for name, value in given.items()),
            ]
            if options.epochs:
                arguments.append(f"--trainer.max_epochs={options.epochs}")
            data, model = {**config["data"]["init_args"], **given}, config["model"]["init_args"]
            if options.scratch and "weights" in model:
                arguments.append("--model.init_args.weights=null")
                model = {**model, "weights": None}
            wanted = {"data": {name: data[name] for name in ("root", "size")}}
            if not any(option.startswith("--model") for option in more):  # which train.py compares when it goes on
                wanted["model"] = model
            tasks.append(Task(run, options.epochs or config["trainer"]["max_epochs"], wanted, [*arguments, *more]))
    return tasks


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
        config["model"]["init_args"], config["data"]["init_args"]["root"], config["data"]["init_args"]["size"]
        int(config["trainer"]["max_epochs"])
    except OSError as error:
        raise StudyError(f"there is no config '{path}'") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise StudyError(
            f"'{path}' is not a whole config, with model, data (root and size) and trainer.max_epochs"
        ) from error
    return config


def train_one(task: Task, device: dict[str, str], stopping: Event, bar: "tqdm[Any]") -> str:
    """Train a model that is not finished, keep the bar up to date, and return what went wrong, if anything.

    Raises:
        StudyError: if it was begun with other settings, or is in training already.
    """
    run, shown = task.run, advance(bar, task, 0)
    for section, wanted in task.settings.items() if run.has_begun else ():
        begun = run.config[section]["init_args"]
        for name, value in wanted.items():
            if begun[name] != value:
                raise StudyError(f"begun with {name} {begun[name]}, not {value}; choose another folder with --out")
    if shown == task.num_epochs:
        return ""
    run.folder.mkdir(parents=True, exist_ok=True)
    names = {"WANDB_RUN_GROUP": run.folder.parents[1].name, "WANDB_NAME": str(run)}
    start = time.monotonic()
    with run.log.open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # train.py inherits it, and may outlive us
        except BlockingIOError as error:
            raise StudyError("in training already, by another process") from error
        log.truncate(0)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "fit", *task.arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, **names, **device},
            process_group=0,  # Ctrl-C reaches it only through us
        )
    try:
        while process.poll() is None and not stopping.wait(POLL):
            shown = advance(bar, task, shown)
    finally:
        process.terminate()  # if it is still there; it saves where it is
        status = process.wait()
        with run.times.open("a") as times:
            times.write(f"{time.monotonic() - start:.1f}\n")
    if advance(bar, task, shown) == task.num_epochs and status == 0:
        return ""
    said = [line for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    mistakes = [line for line in said if line.startswith("error: ")] or said[-1:] or [""]
    return f"{run}: not finished, exit status {status}. {mistakes[0]} ({run.log})"


def advance(bar: "tqdm[Any]", task: Task, shown: int) -> int:
    """Show the epochs of a run that are over, and return their number."""
    over = min(task.run.num_epochs, task.num_epochs) if task.run.has_begun else 0
    bar.update(over - shown)
    return over


def visible_devices() -> list[dict[str, str]]:
    """Return for each GPU the environment in which a process sees it alone; where there is none, one that is empty."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:count]] or [{}]
