import errno
import multiprocessing
import os
import random
import resource
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import WholeCheckpointIO
from resuming import callback
from system.errors import PigmentError
from tests.test_resuming import assert_same, at, only, run
from tests.test_train import SpoilLastEpoch
from tests.world import tiny
from train import main

SIZE = 500_000  # numbers in a checkpoint: 2 MB


def save(path: Path, value: int) -> None:
    WholeCheckpointIO().save_checkpoint({"value": value, "weights": torch.full((SIZE,), float(value))}, path)


def save_for_ever(path: Path, first: int) -> None:
    for value in range(first, first + 1_000_000):
        save(path, value)


def check(path: Path) -> int:
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["weights"] == checkpoint["value"]).all()
    return checkpoint["value"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 0)
    when, value, interrupted = random.Random(0), 0, 0
    for _ in range(12):
        before = path.stat().st_mtime_ns
        saver = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path, value + 1))
        saver.start()
        while path.stat().st_mtime_ns == before:  # until it has saved at least once
            assert saver.is_alive()
            time.sleep(0.001)
        time.sleep(when.uniform(0, 0.1))
        saver.kill()
        saver.join()
        assert check(path) > value
        value = check(path)
        interrupted += len(list(tmp_path.glob(".*.partial")))
    assert interrupted > 0  # or this would have tested nothing
    save(path, value + 1)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def save_with_little_room(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))  # a quarter of what it takes
    with pytest.raises(PigmentError, match=r"'.*last\.ckpt' cannot be written and is unchanged: File too large"):
        save(path, 2)


def test_without_room_the_last_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    saver = multiprocessing.get_context("fork").Process(target=save_with_little_room, args=(path,))
    saver.start()
    saver.join()
    assert saver.exitcode == 0
    assert check(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after_that_if_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flush, flushed = tmp_path / "last.ckpt", os.fsync, []

    def refuse_folders(descriptor: int) -> None:  # as some file systems do
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_folder, path.exists()))
        if is_folder:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    save(path, 5)
    assert check(path) == 5
    assert flushed == [(False, False), (True, True)]


class Obstruct(Callback):
    """Put a file where the checkpoint folder should be."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run_folder = Path(trainer.default_root_dir)
        run_folder.mkdir(parents=True, exist_ok=True)
        (run_folder / "checkpoints").write_text("in the way")


def test_a_run_that_cannot_save_ends_in_a_line(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(tiny("fit", fruits, "--trainer.logger=false", f"--trainer.callbacks+={__name__}.Obstruct"))
    assert stop.value.code == 2
    assert "ckpt' cannot be written and is unchanged: File exists" in capsys.readouterr().err


class FillDisk(Callback):
    """Make the disk full for ``metrics.csv``."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            metrics = Path(trainer.default_root_dir, "metrics.csv")
            metrics.unlink()
            metrics.symlink_to("/dev/full")


def test_a_full_disk_ends_a_run_in_a_line(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(tiny("fit", fruits, f"--trainer.callbacks+={__name__}.FillDisk"))
    assert stop.value.code == 2
    assert "error: [Errno 28] No space left on device. Free some space, then resume" in capsys.readouterr().err
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4


def test_the_best_is_the_same_whether_it_was_written_at_once_or_waited(
    fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = f"--trainer.callbacks+={__name__}.{SpoilLastEpoch.__name__}"
    for share, root in {1e9: "at_once", 0: "waited"}.items():
        monkeypatch.setattr(callback, "MAX_SHARE", share)
        main(tiny("fit", fruits, "--trainer.max_epochs=4", spoiled, f"--trainer.default_root_dir={root}"))
    assert_same(only("waited"), expected=only("at_once"))
    assert len(list(only("waited").glob("checkpoints/*"))) == 2


@pytest.mark.parametrize("can_link", [True, False])
def test_one_file_is_both_the_best_and_the_last(can_link: bool, fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_link:
        monkeypatch.setattr(os, "link", lambda *names: os.chdir("/nowhere"))
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    best, last = sorted((run.run_folder / "checkpoints").iterdir())
    assert best.samefile(last) == can_link
    assert best.read_bytes() == last.read_bytes()


class CountWaiting(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        trainer.most_waiting = max(len(trainer.checkpoint_callback.waiting), getattr(trainer, "most_waiting", 0))


@pytest.mark.parametrize(("kept", "saved_in"), [(-1, [0, 1, 5, 6]), (3, [0, 1, 6])])
def test_however_many_are_kept_few_wait_in_memory(
    kept: int, saved_in: list[int], fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "MAX_SHARE", 0)  # as if saving took forever
    saved, save = [], callback.SaveLast._save

    def count(save_last: callback.SaveLast, trainer: Trainer) -> None:
        saved.append(trainer.current_epoch)
        save(save_last, trainer)

    monkeypatch.setattr(callback.SaveLast, "_save", count)
    best = f"{{class_path: callbacks.SaveBest, init_args: {{monitor: val/loss, save_top_k: {kept}}}}}"
    callbacks = f"--trainer.callbacks=[{best}, callbacks.SaveLast, {__name__}.CountWaiting]"
    run = main(tiny("fit", fruits, "--trainer.max_epochs=6", callbacks))
    assert run.trainer.most_waiting == callback.MAX_WAITING
    assert saved == saved_in  # once before it is known how long that takes
    assert len([*run.run_folder.glob("checkpoints/*.ckpt")]) == (6 if kept < 0 else kept) + 1


class FailInThirdEpoch(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.current_epoch == 2:
            raise PigmentError("no more")


def test_an_error_writes_the_best_that_waits(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "MAX_SHARE", 0)
    with pytest.raises(SystemExit):
        main(tiny("fit", fruits, "--trainer.max_epochs=3", f"--trainer.callbacks+={__name__}.FailInThirdEpoch"))
    saved = {path.stem: torch.load(path, weights_only=True) for path in only("runs").glob("checkpoints/*.ckpt")}
    steps = {name: checkpoint["global_step"] for name, checkpoint in saved.items()}
    assert steps == {"best-epoch000": 4, "last": 4, "best-epoch001": 8}


def test_without_a_last_checkpoint_the_best_is_written_at_once(fruits: Path) -> None:
    only_best = "--trainer.callbacks=[{class_path: callbacks.SaveBest, init_args: {monitor: val/loss}}]"
    killed = at("on_train_batch_start", 1, signum=signal.SIGKILL)
    assert run([*tiny("fit", fruits), only_best, killed]) == -signal.SIGKILL
    assert len(list(Path("runs").glob("*/checkpoints/*.ckpt"))) == 1


def test_a_trainer_knows_which_checkpoint_is_the_best(fruits: Path) -> None:
    trained = main(tiny("fit", fruits))
    assert trained.trainer.checkpoint_callback.best_model_path == str(next(trained.run_folder.glob("*/best-*.ckpt")))
