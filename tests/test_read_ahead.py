import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from datamodules import FruitsDataModule, folder
from datamodules.read_ahead import NUM_AHEAD, ReadAhead, ahead
from system.errors import PigmentError
from tests.test_resuming import COLORIZER, GO_ON, assert_same, at, only, run
from tests.world import tiny
from train import main


@pytest.fixture
def reads_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is read ahead, as for a GPU."""
    monkeypatch.setattr(folder, "DataLoader", ReadAhead)


def num_readers() -> int:
    return sum("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_batches_come_in_order_a_few_read_ahead() -> None:
    taken = []

    def count() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    for position, number in enumerate(ahead(count())):
        assert number == position
        assert len(taken) <= position + 1 + NUM_AHEAD
    assert taken == list(range(10))


def test_an_error_is_raised_in_its_turn_and_ends_the_thread() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise PigmentError("the store is damaged")

    batches = ahead(fail())
    assert next(batches) == 1
    assert num_readers() == 1
    with pytest.raises(PigmentError, match="the store is damaged"):
        next(batches)
    assert num_readers() == 0


def test_the_thread_ends_with_an_iterator_that_nobody_finishes() -> None:
    batches = ahead(iter(range(10)))
    assert next(batches) == 0
    assert num_readers() == 1
    del batches
    assert num_readers() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_gpu_is_fed_by_a_thread_or_by_workers(num_workers: int, fruits: Path) -> None:
    data = FruitsDataModule(str(fruits), size=16, batch_size=4, num_workers=num_workers)
    trainer: Any = SimpleNamespace(accelerator=CUDAAccelerator(), world_size=1, global_rank=0, overfit_batches=0)
    data.trainer = trainer
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert type(loader) is (DataLoader if num_workers else ReadAhead)
        assert loader.pin_memory
        assert loader.dataset.pinned == (num_workers == 0)  # CUDA does not survive the fork of a worker


@pytest.mark.parametrize("option", ["overfit_batches=2", "limit_train_batches=3"])
def test_batches_read_ahead_train_alike(option: str, fruits: Path, request: pytest.FixtureRequest) -> None:
    arguments = tiny("fit", fruits, "--data.init_args.flip=true", "--trainer.logger=false", f"--trainer.{option}")
    expected = main(arguments)
    request.getfixturevalue("reads_ahead")
    found = main(arguments)
    assert type(found.trainer.train_dataloader) is type(found.trainer.val_dataloaders) is ReadAhead
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, found.model.state_dict()[name]), name


def test_a_run_that_reads_ahead_is_resumed_exactly(paintings: Path, request: pytest.FixtureRequest) -> None:
    arguments = tiny("fit", paintings, "--data.init_args.flip=true", config=COLORIZER)
    assert run(arguments) == 0
    request.getfixturevalue("reads_ahead")
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    for stop in (("on_train_batch_end", 0, 1), ("on_validation_batch_start", 0, 1)):
        assert run([*arguments, at(*stop)]) == 128 + signal.SIGTERM
    assert run(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


class CutShort(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        os.truncate(trainer.datamodule.store.folder / "pixels.uint8", 100)


@pytest.mark.usefixtures("reads_ahead")
def test_a_store_that_is_cut_short_while_training_ends_the_run(
    fruits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(tiny("fit", fruits, f"--trainer.callbacks+={__name__}.CutShort"))
    assert "is damaged. Delete it: it will be built again.\n" in capsys.readouterr().err
    assert num_readers() == 0
