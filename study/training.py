"""Training many models, each by train.py in its own process."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import torch
from jsonargparse import ActionConfigFile
from lightning.pytorch import LightningDataModule, LightningModule
from tqdm import tqdm

from cli.parser import StrictParser, short
from study.runs import Run, by_number, class_name, kept, read_config
from system.atomic import make_folders
from system.errors import PigmentError, reason, shown
from system.hardware import start_gpu
from system.signals import Interrupted, handling, interrupt

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "colorization").glob("*.yaml"), key=by_number)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 1.0  # seconds between two looks at a run
LONGEST_TAG = 64  # characters that W&B takes
OURS = {  # options of train.py that a study sets itself
    "--trainer.max_epochs": "use --epochs",
    "--data.root": "use --root",
    "--data.size": "use --size",
    "--seed_everything": "use --seeds",
    "--trainer.default_root_dir": "use --out",
    "--config": "use --configs",
    "-c": "use --configs",
    "--ckpt_path": "it is always last",
}

SCRATCH = {"backbone": "null", "weights": "null", "freeze_encoder": "false"}  # settings of pre-trained networks


class Task(NamedTuple):
    """One model to be trained with one seed."""

    run: Run
    num_epochs: int
    settings: dict[str, Any]  # a run that has begun must share them
    arguments: list[str]  # for train.py


def train_all(options: Namespace, more: list[str]) -> int:
    """Train what is not finished yet, and return the exit status: 1 if something failed.

    Raises:
        PigmentError: if nothing can be trained as asked.
        Interrupted: by a signal, once the models in training are saved.
    """
    tasks = plan(options, more)
    make_folders([options.out / "study.html"])  # the page to come
    devices: SimpleQueue[dict[str, str]] = SimpleQueue()
    for device in visible_devices():
        devices.put(device)
    stopping = Event()
    total = sum(task.num_epochs for task in tasks)
    signals = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    with handling(interrupt, signals), tqdm(total=total, desc="Study", unit=" epochs") as bar:

        def train(task: Task) -> str:
            device = devices.get()
            try:
                return train_one(task, device, stopping, bar)
            except Exception as error:  # a damaged folder or a full disk must not stop the others
                return f"{task.run}: {reason(error)}"
            finally:
                devices.put(device)

        pool = ThreadPoolExecutor(devices.qsize())
        try:
            failures = [failure for failure in pool.map(train, tasks) if failure]
        except Interrupted:
            print("\nStopped. Run the same command again to resume.", file=sys.stderr)
            raise
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
    for failure in failures:
        print(shown(failure), file=sys.stderr)
    print(f"{len(tasks) - len(failures)} of {len(tasks)} models are trained in '{shown(options.out)}'.")
    return 1 if failures else 0


def plan(options: Namespace, more: list[str]) -> list[Task]:
    """List what is asked for, finished or not.

    Raises:
        PigmentError: if a config is missing or incomplete, two share a name, or ``study run`` sets an option itself.
    """
    names = [path.stem for path in options.configs]
    if len(names) > len(set(names)):
        raise PigmentError("two configs share a name, so their models would share a folder; rename one")
    for option in (option.partition("=")[0] for option in more):
        if short(option) in OURS:
            raise PigmentError(f"{option} cannot be given here: {OURS[short(option)]}")
    tasks = []
    sizes: dict[str, int | None] = {}  # of the images of each kind, which all its models must share
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
            ]
            kind = class_name(config["data"])
            for name, value in (("root", options.root), ("size", sizes.get(kind, options.size))):
                if value is not None:
                    arguments.append(f"--data.init_args.{name}={value}")
            if options.epochs:
                arguments.append(f"--trainer.max_epochs={options.epochs}")
            if options.scratch:
                given = SCRATCH.keys() & config["model"]["init_args"]
                arguments += [f"--model.init_args.{name}={SCRATCH[name]}" for name in sorted(given)]
            arguments += more
            settings = kept(as_parsed(arguments))
            sizes.setdefault(kind, settings.get("size"))
            num_epochs = options.epochs or int(config["trainer"]["max_epochs"])
            tasks.append(Task(run, num_epochs, settings, arguments))
    return tasks


def as_parsed(arguments: list[str]) -> dict[str, Any]:
    """Parse the model and data as train.py does, or exit as it does if an argument is wrong."""
    return train_parser().parse_args(arguments).as_dict()


@cache
def train_parser() -> StrictParser:
    """Return a faster parser than train.py's, which checks only model and data."""
    parser = StrictParser()
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.link_arguments("data.init_args.size", "model.init_args.image_size")
    parser.add_argument("--trainer", type=dict)
    for name in ("seed_everything", "compile", "ckpt_path", "weights_only"):
        parser.add_argument(f"--{name}")
    return parser


def train_one(task: Task, device: dict[str, str], stopping: Event, bar: "tqdm[Any]") -> str:
    """Train a model unless it is finished, advancing the bar, and return what went wrong, if anything.

    Raises:
        PigmentError: if it was begun with different settings, or is already in training.
    """
    run, num_shown = task.run, advance(bar, task, 0)
    if run.has_begun:
        begun = kept(run.config)
        for name, value in task.settings.items():
            if begun.get(name, value) != value:
                raise PigmentError(f"begun with {name} {begun[name]}, not {value}; choose a different --out")
    if num_shown == task.num_epochs:
        return ""
    run.folder.mkdir(parents=True, exist_ok=True)
    study = run.folder.resolve().parents[1].name.replace(",", " ")[:LONGEST_TAG]
    tags = [study, *filter(None, [os.environ.get("WANDB_TAGS")])]
    names = {"WANDB_TAGS": ",".join(tags), "WANDB_NAME": str(run)}
    start = time.monotonic()
    with run.log.open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # train.py inherits the lock, and may outlive us
        except BlockingIOError as error:
            raise PigmentError("already in training, by another process") from error
        log.truncate(0)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "fit", *task.arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, **names, **device},
            process_group=0,  # so that Ctrl-C reaches it only through us
        )
    try:
        while process.poll() is None and not stopping.wait(POLL):
            num_shown = advance(bar, task, num_shown)
    finally:
        process.terminate()  # if it still runs, it saves first
        status = process.wait()
        with run.times.open("a") as times:
            times.write(f"{time.monotonic() - start:.1f}\n")
    if advance(bar, task, num_shown) == task.num_epochs and status == 0:
        return ""
    said = [line for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    mistakes = [line for line in said if line.startswith("error: ")] or said[-1:] or [""]
    return f"{run}: not finished, exit status {status}. {mistakes[0]} ({run.log})"


def advance(bar: "tqdm[Any]", task: Task, num_shown: int) -> int:
    """Show how many epochs of a run are finished, and return that number."""
    finished = min(task.run.num_epochs, task.num_epochs)
    bar.update(finished - num_shown)
    return finished


def visible_devices() -> list[dict[str, str]]:
    """Return, for each GPU, the environment in which a process sees only that GPU; without GPUs, an empty one."""
    if not start_gpu():
        return [{}]
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(count)]
    if not names[0].startswith("MIG-"):  # a process sees only one part of a split GPU, so count is 1
        names = names[:count]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
