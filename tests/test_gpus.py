"""What only several GPUs can show: pytest -m gpus, where there are two or more; three are used if there are."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import train
from tests.test_gpu import EXACT, assert_close, by_config, root, run_script, sixteen  # noqa: F401 - root is a fixture
from tests.test_resuming import CALIBRATED, COLORIZER, GO_ON, STOPS, assert_same, at, only
from tests.world import tiny

NUM_GPUS = min(torch.cuda.device_count(), 3)  # beyond two, the order in which gradients are added matters
pytestmark = [
    pytest.mark.gpus,
    pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs or more"),
    pytest.mark.filterwarnings("default"),
]
ON_GPUS = ["--trainer.accelerator=gpu", "--trainer.strategy=ddp", f"--trainer.devices={NUM_GPUS}"]


def succeed(arguments: list[str], status: int = 0) -> str:
    """Run train.py, check its exit status, and return what it said."""
    done = run_script(arguments)
    assert done.returncode == status, done.stdout
    return done.stdout


def test_they_learn_what_one_does(paintings: Path) -> None:
    arguments = tiny("fit", sixteen(paintings), *ON_GPUS, config=COLORIZER)
    succeed([*arguments, "--trainer.devices=1"])
    two = ["--trainer.devices=2", "--data.init_args.batch_size=2", "--trainer.default_root_dir=two"]
    assert "2 x cuda" in succeed([*arguments, *two])
    assert_close(only("two"), expected=only("runs"))


@by_config(CALIBRATED, COLORIZER)
def test_processes_that_are_stopped_end_as_if_they_were_not(config: Path, root: Path) -> None:  # noqa: F811
    arguments = tiny("fit", root, *ON_GPUS, *EXACT, "--data.init_args.batch_size=2", config=config)
    arguments += ["--trainer.precision=bf16-mixed"]
    succeed(arguments)
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    for rank, stop in enumerate((STOPS[0], STOPS[4])):  # each process alone receives the signal
        succeed([*arguments, at(*stop, rank=rank)], status=143)
    succeed(arguments)
    assert_same(only("stopped"), expected=only("runs"))


def test_a_signal_to_the_first_process_saves_and_stops_all(paintings: Path, tmp_path: Path) -> None:
    arguments = tiny("fit", paintings, *ON_GPUS, "--trainer.max_epochs=100000", config=COLORIZER)
    with (tmp_path / "log.txt").open("w+") as log:
        process = subprocess.Popen([sys.executable, train.__file__, *arguments], stdout=log, stderr=subprocess.STDOUT)
        while not list(Path("runs").glob("*/checkpoints/last.ckpt")):
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert "SIGTERM: stopped after step" in (tmp_path / "log.txt").read_text()


class FullDisk(Callback):
    """Make one process find its disk full."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and batch_idx == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"of process {self.rank}")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all(rank: int, paintings: Path) -> None:
    full = f"--trainer.callbacks+={{class_path: tests.test_gpus.FullDisk, init_args: {{rank: {rank}}}}}"
    few = "--data.init_args.batch_size=2"
    done = run_script(tiny("fit", paintings, *ON_GPUS, few, full, config=COLORIZER))  # NCCL would wait for half an hour
    assert done.returncode == 2 if rank == 0 else done.returncode
    assert f"No space left on device: 'of process {rank}'" in done.stdout
