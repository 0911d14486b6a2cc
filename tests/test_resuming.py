import faulthandler
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing import ProcessExitedException

from callbacks import ResumeExactly
from colorization import ShallowColorizer
from colorization.encoders import TimmEncoder, read_weights
from datamodules import FruitsDataModule
from tests.world import CONFIGS, last, metrics, read_wandb, tiny
from train import PigmentCLI, main

COLORIZER = CONFIGS / "colorization" / "4_shallow_adam.yaml"
PALETTE = COLORIZER.with_name("10_palette.yaml")
CALIBRATED = CONFIGS / "vae_calibrated.yaml"
RESIDUAL = CONFIGS / "vae_residual.yaml"
GO_ON = "--ckpt_path=last"
ACCUMULATING = ["--trainer.accumulate_grad_batches=2", "--data.init_args.batch_size=2"]  # 7 batches, 4 steps
OFTEN = "--trainer.val_check_interval=0.5"
# float16 on a CPU; steps overflow at first, and the scaler halves its factor each time
HALF = [
    "--trainer.precision=null",
    "--trainer.plugins+={class_path: lightning.pytorch.plugins.MixedPrecision, init_args: {precision: 16-mixed, "
    "device: cpu, scaler: {class_path: torch.amp.GradScaler, init_args: {device: cpu, growth_interval: 3}}}}",
]


def start(arguments: list[str], in_group: bool = False) -> Any:
    """Run train.py in its own process, with everything imported already; if asked, as the first of its own group."""
    wandb.teardown()  # or they would share one service, which would wait for more from a process that was killed
    process = multiprocessing.get_context("fork").Process(target=main_in_process, args=(arguments, in_group))
    process.start()
    return process


def main_in_process(arguments: list[str], in_group: bool) -> None:
    faulthandler.enable(2)  # or it would say why it crashed where pytest says it, which no report shows
    if in_group:
        os.setpgrp()
    main(arguments)


def run(arguments: list[str]) -> int:
    """Run train.py in its own process, and return its exit status: as in a shell, or minus a signal."""
    process = start(arguments)
    process.join()
    return process.exitcode


def run_two(arguments: list[str], processes: int = 2) -> int:
    """Run train.py in two processes, or as many as are asked for, and return the exit status."""
    try:
        main([*arguments, f"--trainer.devices={processes}", "--trainer.strategy=ddp_fork"])
    except ProcessExitedException as stop:
        return stop.exit_code
    return 0


def only(root: str) -> Path:
    """Return the folder of the only run in ``root``."""
    (folder,) = Path(root).iterdir()
    return folder


def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(below, f"{name}.{key}")
    else:
        yield name, value


def everything(folder: Path) -> dict[str, Any]:
    """All that a run leaves: the tensors and counters of its checkpoints, its metrics, its pictures."""
    found = dict(flatten(metrics(folder), "metrics"))
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        for name, value in flatten(torch.load(checkpoint, "cpu", weights_only=True), checkpoint.name):
            value = (value.dtype, value.shape, value.numpy().tobytes()) if torch.is_tensor(value) else value
            found[name] = value
    found = {
        name.replace(str(folder), "RUN"): value.replace(str(folder), "RUN") if isinstance(value, str) else value
        for name, value in found.items()
    }
    assert {found.pop(name) for name in list(found) if name.endswith(".run_id")} == {folder.name}
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "media").rglob("*.png")}


def assert_same(folder: Path, expected: Path, apart_from: str = "nothing") -> None:
    found, wanted = everything(folder), everything(expected)
    for both in (found, wanted):
        for name in [name for name in both if apart_from in name]:
            del both[name]
    assert found.keys() ^ wanted.keys() == set()
    assert [name for name in found if found[name] != wanted[name]] == []


class SignalAt(Callback):
    """Send this process a signal at a hook."""

    def __init__(self, signum: int, hook: str, epoch: int, batch_idx: int = 0, rank: int = 0) -> None:
        self.signum, self.place = signum, (epoch, batch_idx, rank)
        setattr(self, hook, self.send)

    def send(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        batch_idx = next((arg for arg in args if isinstance(arg, int)), 0)
        if (trainer.current_epoch, batch_idx, trainer.global_rank) == self.place and not trainer.sanity_checking:
            os.kill(os.getpid(), self.signum)


def at(hook: str, epoch: int, batch_idx: int = 0, signum: int = signal.SIGTERM, rank: int = 0) -> str:
    place = f"{{signum: {int(signum)}, hook: {hook}, epoch: {epoch}, batch_idx: {batch_idx}, rank: {rank}}}"
    return f"--trainer.callbacks+={{class_path: {__name__}.SignalAt, init_args: {place}}}"


STOPS = (  # one after the other, all in one run
    ("on_train_batch_end", 0, 1),  # in the middle of an epoch
    ("on_validation_batch_start", 0, 1),  # in the middle of a validation
    ("on_validation_batch_start", 0, 1),  # in the middle of the same one, started over
    ("on_train_epoch_end", 0),  # between epochs
    ("on_train_batch_start", 1, 0),
    ("on_train_batch_end", 1, 2),  # before the last batch, or in the middle of accumulating gradients
    ("on_train_batch_end", 2, 3),  # the last batch, or when only a validation is between this and the next
)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (RESIDUAL, ["--trainer.precision=bf16-mixed", "--data.init_args.num_workers=2"]),
        pytest.param(
            COLORIZER, ["--trainer.precision=bf16-mixed", "--data.init_args.num_workers=2"], marks=pytest.mark.slow
        ),
        pytest.param(COLORIZER, ACCUMULATING, marks=pytest.mark.slow),
        pytest.param(COLORIZER, [OFTEN], marks=pytest.mark.slow),
        (COLORIZER, [OFTEN, *ACCUMULATING]),
    ],
    ids=[
        "residual-bf16-workers",
        "colorizer-bf16-workers",
        "colorizer-accumulating",
        "colorizer-often",
        "colorizer-often-accumulating",
    ],
)
def test_a_run_that_is_stopped_anywhere_ends_as_if_it_were_not(
    config: Path, more: list[str], fruits: Path, paintings: Path
) -> None:
    root = paintings if config == COLORIZER else fruits
    arguments = tiny("fit", root, "--trainer.max_epochs=3", *more, config=config)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", "--ckpt_path=last"]
    assert [run([*arguments, at(*stop)]) for stop in STOPS] == [143] * len(STOPS)
    assert run(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


class StopAt(Callback):
    """Ask Lightning to stop at a hook."""

    def __init__(self, hook: str, epoch: int, batch_idx: int = 0) -> None:
        self.place = (epoch, batch_idx)
        setattr(self, hook, self.stop)

    def stop(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        batch_idx = next((arg for arg in args if isinstance(arg, int)), 0)
        if (trainer.current_epoch, batch_idx) == self.place and not trainer.sanity_checking:
            trainer.should_stop = True


def stop_at(hook: str, epoch: int, batch_idx: int = 0) -> str:
    place = f"{{hook: {hook}, epoch: {epoch}, batch_idx: {batch_idx}}}"
    return f"--trainer.callbacks+={{class_path: {__name__}.StopAt, init_args: {place}}}"


class Scheduled(ShallowColorizer):
    """Has a learning rate that changes after every step, after every epoch, and with the validation loss."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        decay, steps = torch.optim.lr_scheduler.ExponentialLR, {"interval": "step"}
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)
        schedulers = [{"scheduler": decay(optimizer, 0.9), **steps}, {"scheduler": decay(optimizer, 0.8)}]
        return [optimizer], [*schedulers, {"scheduler": plateau, "monitor": "val/loss"}]


def callback(name: str, settings: str = "") -> str:
    return f"--trainer.callbacks+={{class_path: lightning.pytorch.callbacks.{name}, init_args: {{{settings}}}}}"


AVERAGING = callback("EMAWeightAveraging", "decay: 0.5")
SWA = callback("StochasticWeightAveraging", "swa_lrs: 0.01, swa_epoch_start: 2, device: null")
WAITING = ["--trainer.max_epochs=3", stop_at("on_train_batch_end", 0, 1)]
MORE_AND_MORE = callback("GradientAccumulationScheduler", "scheduling: {0: 2, 1: 3}")


@pytest.mark.parametrize(
    ("more", "stops"),
    [
        ([], [stop_at("on_train_batch_end", 0, 1), stop_at("on_train_epoch_start", 1), "--trainer.max_steps=6"]),
        ([], [stop_at("on_train_batch_end", 0, 3), stop_at("on_train_batch_start", 1, 0)]),
        pytest.param(
            ACCUMULATING,
            [stop_at("on_train_batch_end", 0, 2), stop_at("on_train_batch_end", 1, 6)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [OFTEN], [stop_at("on_validation_end", 0), stop_at("on_validation_batch_end", 1, 0)], marks=pytest.mark.slow
        ),
        ([OFTEN, *ACCUMULATING], [stop_at("on_validation_end", 0), "--trainer.max_steps=7"]),
        (["--trainer.max_steps=8"], ["--trainer.max_steps=3", "--trainer.max_steps=4", "--trainer.max_steps=6"]),
        (["--trainer.overfit_batches=3"], [stop_at("on_train_batch_end", 0, 0), stop_at("on_train_batch_end", 1, 1)]),
        ([f"--model={__name__}.Scheduled"], [stop_at("on_train_batch_end", 0, 1), stop_at("on_train_batch_end", 1, 2)]),
        (
            [MORE_AND_MORE, "--data.init_args.batch_size=2"],
            [stop_at("on_train_batch_end", 0, 1), stop_at("on_train_batch_end", 1, 2)],
        ),
        ([AVERAGING], [stop_at("on_train_batch_end", 0, 1), "--trainer.max_epochs=1"]),
        pytest.param(
            [SWA, "--trainer.max_epochs=3"],
            [stop_at("on_train_batch_end", 0, 1), stop_at("on_train_batch_end", 1, 1)],
            marks=pytest.mark.slow,
        ),
        ([*WAITING, "--trainer.min_epochs=2"], ["--trainer.max_steps=3", "--trainer.max_steps=6"]),
        pytest.param([*WAITING, "--trainer.min_steps=6"], ["--trainer.max_steps=3"], marks=pytest.mark.slow),
    ],
    ids=[
        "within",
        "last-and-first",
        "accumulating",
        "validating",
        "validating-accumulating",
        "steps",
        "overfitting",
        "scheduled",
        "more-and-more",
        "averaging",
        "averaging-at-the-end",
        "waiting-for-min-epochs",
        "waiting-for-min-steps",
    ],
)
def test_a_run_that_stops_itself_goes_on_as_if_it_had_not(more: list[str], stops: list[str], paintings: Path) -> None:
    arguments = tiny("fit", paintings, *more, config=COLORIZER)
    main(arguments)
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    steps = [main([*arguments, stop]).trainer.global_step for stop in stops]
    assert steps == sorted(set(steps))
    main(arguments)
    # the score of the last best checkpoint, which Lightning saves but does not load
    assert_same(only("stopped"), expected=only("runs"), apart_from=".current_score")


@pytest.mark.parametrize(
    "more", [[], pytest.param(ACCUMULATING, marks=pytest.mark.slow)], ids=["plain", "accumulating"]
)
def test_two_processes_that_stop_themselves_go_on_as_if_they_had_not(more: list[str], paintings: Path) -> None:
    arguments = tiny("fit", paintings, "--data.init_args.batch_size=2", *more, config=COLORIZER)
    assert run_two(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    assert run_two([*arguments, stop_at("on_train_batch_end", 0, 0)]) == 0
    assert torch.load(only("stopped") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    assert run_two(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


def test_a_run_that_runs_out_of_time_goes_on_with_more(paintings: Path) -> None:
    arguments = tiny("fit", paintings, config=COLORIZER)
    main(arguments)
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    for _ in range(2):
        assert main([*arguments, "--trainer.max_time={microseconds: 1}"]).trainer.global_step == 1
    main([*arguments, "--trainer.max_time={hours: 1}"])
    assert_same(only("stopped"), expected=only("runs"), apart_from=".Timer.")


def test_a_finished_run_with_an_epoch_more_for_its_average_ends_at_once(fruits: Path) -> None:
    swa = callback("StochasticWeightAveraging", "swa_lrs: 0.01, swa_epoch_start: 1, device: null")
    arguments = tiny("fit", fruits, swa)
    assert run(arguments) == 0
    checkpoint = only("runs") / "checkpoints" / "last.ckpt"
    trained = checkpoint.read_bytes()
    assert run([*arguments, GO_ON]) == 0
    assert checkpoint.read_bytes() == trained


def test_a_run_that_stops_within_an_epoch_says_how_to_go_on(fruits: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped = main(tiny("fit", fruits, "--trainer.max_steps=6"))
    said = "\nStopped within epoch 1, after step 6. To go on, raise the limit that stopped it, and resume with "
    assert f"{said}--ckpt_path last: {last(stopped)}" in caplog.messages
    caplog.clear()
    main(tiny("fit", fruits, "--trainer.max_steps=8"))
    assert "Stopped" not in caplog.text


def test_a_validation_of_averaged_weights_is_finished_before_a_signal_ends_the_run(paintings: Path) -> None:
    arguments = tiny("fit", paintings, AVERAGING, config=COLORIZER)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    assert run([*arguments, at("on_validation_batch_start", 0, 1)]) == 143
    assert run(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


def test_a_run_with_averaged_weights_that_is_stopped_and_killed_ends_as_if_it_were_not(paintings: Path) -> None:
    """And validation, whose metrics are compared, has the weights that are saved; the frozen encoder stays as it is."""
    arguments = tiny("fit", paintings, "--trainer.precision=bf16-mixed", config=PALETTE)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=killed", GO_ON]
    assert run([*arguments, at("on_train_batch_end", 0, 1)]) == 143
    assert run([*arguments, at("on_train_batch_end", 1, 2, signum=signal.SIGKILL)]) == -signal.SIGKILL
    assert run(arguments) == 0
    assert_same(only("killed"), expected=only("runs"))
    checkpoint = torch.load(only("runs") / "checkpoints" / "last.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    different = {name for name, weight in current.items() if not torch.equal(weight, averaged[name])}
    assert "net.chroma.weight" in different
    assert not any(name.startswith("net.encoder.") for name in different)
    encoder = TimmEncoder("tf_efficientnet_lite0")
    encoder.load_pretrained(read_weights("package", encoder.name), "package")
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, averaged[f"net.encoder.{name}"]), name
    given = [f"--ckpt_path={only('runs') / 'checkpoints' / 'last.ckpt'}", "--trainer.default_root_dir=validated"]
    assert run(tiny("validate", paintings, "--trainer.precision=bf16-mixed", *given, config=PALETTE)) == 0
    (validated,) = metrics(only("validated"))
    *_, logged = (row for row in metrics(only("runs")) if row["val/loss"])
    for name in ("loss", "ciede2000"):
        assert float(validated[f"val/{name}"]) == pytest.approx(float(logged[f"val/{name}"]), rel=1e-5)


def test_an_encoder_that_learns_goes_on_as_if_it_had_not_stopped(paintings: Path) -> None:
    """In a new process, the optimizer must find its states in the same order."""
    scratch = ["--model.backbone=null", "--model.weights=null", "--model.freeze_encoder=false"]
    arguments = tiny("fit", paintings, *scratch, config=PALETTE)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    assert run([*arguments, at("on_train_batch_end", 0, 2)]) == 143
    assert run(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


def impatient(patience: int) -> str:
    """Stop after ``patience`` validations: no loss falls by as much as this asks for."""
    return callback("EarlyStopping", f"monitor: val/loss, min_delta: 9, patience: {patience}")


def content(threshold: int) -> str:
    """Stop after a validation: every loss is above -9."""
    return callback("EarlyStopping", f"monitor: val/loss, patience: 100, divergence_threshold: {threshold}")


@pytest.mark.parametrize(
    ("old", "new", "often", "steps", "said"),
    [
        (impatient(1), impatient(100), "0.25", 2, "stopped improving. To go on, set its patience to more than 1."),
        pytest.param(
            impatient(1),
            impatient(100),
            "1.0",
            8,
            "stopped improving. To go on, set its patience to more than 1.",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            content(-9), content(9), "1.0", 4, "passed a limit. To go on, change that limit.", marks=pytest.mark.slow
        ),
    ],
    ids=["within-an-epoch", "after-an-epoch", "threshold"],
)
def test_after_early_stopping_a_run_goes_on_only_with_another_limit(
    old: str, new: str, often: str, steps: int, said: str, paintings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = tiny(
        "fit", paintings, f"--trainer.val_check_interval={often}", "--trainer.max_epochs=3", config=COLORIZER
    )
    main([*arguments, new])
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    assert [main([*arguments, old]).trainer.global_step for _ in range(2)] == [steps, steps]
    assert caplog.messages.count(f"EarlyStopping ended this run because val/loss {said}") == 2
    main([*arguments, new])
    assert_same(only("stopped"), expected=only("runs"), apart_from="stop")  # EarlyStopping saves when it stopped


class WorseOnce(Callback):
    """Logs a metric that gets worse in the second epoch and better in all others."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/worse_once", 1.0 if trainer.current_epoch == 1 else -1.0 * trainer.current_epoch)


def test_early_stopping_that_waits_for_min_epochs_is_remembered(
    paintings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = callback("EarlyStopping", "monitor: val/worse_once, patience: 1")
    more = ["--trainer.max_epochs=5", "--trainer.min_epochs=3", f"--trainer.callbacks+={__name__}.WorseOnce", early]
    arguments = tiny("fit", paintings, *more, GO_ON, config=COLORIZER)
    assert main([*arguments, "--trainer.max_steps=8"]).trainer.current_epoch == 2
    assert "EarlyStopping" not in caplog.text
    assert [main(arguments).trainer.current_epoch for _ in range(2)] == [3, 3]
    assert caplog.text.count("EarlyStopping ended this run because val/worse_once stopped improving.") == 2


def test_a_grad_scaler_goes_on_where_a_kill_left_it(fruits: Path) -> None:
    often = "--trainer.callbacks+={class_path: callbacks.SaveLast, init_args: {every_n_train_steps: 2}}"
    arguments = tiny("fit", fruits, *HALF, often, config=CALIBRATED)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", "--ckpt_path=last"]
    assert run([*arguments, at("on_train_batch_end", 0, 3, signum=signal.SIGKILL)]) == -signal.SIGKILL
    assert run(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


@pytest.fixture
def ask_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes ask each other before every batch, as a second is longer than these runs."""
    monkeypatch.setattr("resuming.callback.ASK_SECONDS", 0)


@pytest.mark.usefixtures("ask_always")
@pytest.mark.parametrize(
    ("config", "more"),
    [
        (CALIBRATED, ["--trainer.precision=bf16-mixed", "--data.init_args.num_workers=2"]),
        pytest.param(COLORIZER, [], marks=pytest.mark.slow),
    ],
    ids=["calibrated-bf16-workers", "colorizer"],
)
def test_two_processes_that_are_stopped_end_as_if_they_were_not(
    config: Path, more: list[str], fruits: Path, paintings: Path
) -> None:
    root = paintings if config == COLORIZER else fruits
    arguments = tiny("fit", root, "--data.init_args.batch_size=2", *more, config=config)
    assert run_two(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", "--ckpt_path=last"]
    for rank, stop in enumerate(STOPS[:2]):  # each process alone receives the signal
        assert run_two([*arguments, at(*stop, rank=rank)]) == 143
    assert run_two(arguments) == 0
    assert_same(only("stopped"), expected=only("runs"))


@pytest.mark.usefixtures("ask_always")
@pytest.mark.parametrize(
    "config", [CALIBRATED, pytest.param(COLORIZER, marks=pytest.mark.slow)], ids=["calibrated", "colorizer"]
)
def test_three_processes_that_are_stopped_sum_in_the_same_order(config: Path, fruits: Path, paintings: Path) -> None:
    root = paintings if config == COLORIZER else fruits
    arguments = tiny("fit", root, "--data.init_args.batch_size=2", config=config)
    assert run_two(arguments, processes=3) == 0
    arguments += ["--trainer.default_root_dir=stopped", "--ckpt_path=last"]
    assert run_two([*arguments, at("on_train_batch_end", 0, 0)], processes=3) == 143
    assert run_two(arguments, processes=3) == 0
    assert_same(only("stopped"), expected=only("runs"))


class ReadMetrics(Callback):
    """Reads what has been logged before anything is."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert "train/loss" not in trainer.callback_metrics


def test_means_go_on_though_they_are_read_before_the_first_batch(fruits: Path) -> None:
    arguments = tiny("fit", fruits, "--trainer.max_epochs=1")
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    assert run([*arguments, at("on_train_batch_end", 0, 1)]) == 143
    assert run([*arguments, f"--trainer.callbacks+={__name__}.ReadMetrics"]) == 0
    assert metrics(only("stopped")) == metrics(only("runs"))


def test_where_a_run_goes_on_from_is_said_in_a_line(fruits: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(tiny("fit", fruits, "--ckpt_path=last"))
    assert "Resuming: no run in 'runs' has a last.ckpt, so a new one begins." in caplog.messages
    left_by_a_kill = only("runs") / "checkpoints" / ".best-epoch009.ckpt.partial"
    left_by_a_kill.touch()
    run = main(tiny("fit", fruits, "--ckpt_path=last", "--trainer.max_epochs=3"))
    assert f"Resuming: from {run.run_folder}/checkpoints/last.ckpt" in caplog.messages
    assert not left_by_a_kill.exists()


def test_a_signal_before_anything_was_trained_ends_the_run_at_once(fruits: Path) -> None:
    for signum, status in {signal.SIGINT: 130, signal.SIGTERM: 143}.items():
        assert run(tiny("fit", fruits, at("setup", 0, signum=signum))) == status
        assert run(tiny("fit", fruits, at("on_train_batch_start", 0, signum=signum))) == status


def test_a_signal_before_anything_is_saved_names_the_checkpoint_that_the_run_came_from(
    fruits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last(main(tiny("fit", fruits, "--trainer.max_steps=6"))).rename("here.ckpt")  # within epoch 1
    shutil.rmtree("runs")
    with pytest.raises(SystemExit, match="143"):
        main(tiny("fit", fruits, "--ckpt_path=here.ckpt", at("on_train_batch_start", 1, 2)))
    assert "\nSIGTERM: stopped after step 6. Resume from there with --ckpt_path here.ckpt" in caplog.messages


@pytest.mark.parametrize(("when", "step"), [("every_n_train_steps: 2", 2), ("every_n_minutes: 0.00000001", 3)])
def test_within_an_epoch_it_is_saved_by_steps_or_minutes(when: str, step: int, fruits: Path) -> None:
    often = f"--trainer.callbacks+={{class_path: callbacks.SaveLast, init_args: {{{when}}}}}"
    assert run(tiny("fit", fruits, often, at("on_train_batch_end", 0, 3, signum=signal.SIGKILL))) == -signal.SIGKILL
    assert torch.load(only("runs") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.parametrize(
    ("more", "step"),
    [
        pytest.param([], 4, marks=pytest.mark.slow),
        (["--trainer.val_check_interval=2", "--trainer.limit_train_batches=3"], 2),  # within the epoch
        ([OFTEN, "--trainer.limit_train_batches=2", "--model.init_args.lr=0.00001"], 2),  # at the last batch
    ],
)
def test_the_best_checkpoint_goes_on_as_well(more: list[str], step: int, paintings: Path) -> None:
    arguments = tiny("fit", paintings, *more, config=COLORIZER)
    assert run([*arguments, "--trainer.max_epochs=1"]) == 0
    best = only("runs") / "checkpoints" / "best-epoch000.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == step
    assert run([*arguments, f"--ckpt_path={best}"]) == 0
    assert run([*arguments, "--trainer.default_root_dir=whole"]) == 0
    assert metrics(only("runs")) == metrics(only("whole"))


def test_a_rewound_run_logs_anew(paintings: Path) -> None:
    assert run(tiny("fit", paintings, config=COLORIZER)) == 0
    first, best = metrics(only("runs")), next(only("runs").glob("checkpoints/best*.ckpt"))
    checkpoint = torch.load(best, weights_only=True)
    assert (
        run(tiny("fit", paintings, "--trainer.max_epochs=1", "--trainer.default_root_dir=one", config=COLORIZER)) == 0
    )
    earlier = torch.load(only("one") / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**earlier, "run_id": checkpoint["run_id"]}, "earlier.ckpt")
    other = ["--ckpt_path=earlier.ckpt", "--data.init_args.seed=1"]
    assert run(tiny("fit", paintings, *other, config=COLORIZER)) == 0
    for row, old in zip(metrics(only("runs")), first, strict=True):
        assert (row == old) == (int(row["step"]) < earlier["global_step"])


def test_a_signal_to_all_processes_spares_the_workers(fruits: Path) -> None:
    """Like Ctrl-C at a terminal."""
    arguments = tiny("fit", fruits, "--data.init_args.num_workers=2", "--trainer.max_epochs=100000")
    for signum, status in {signal.SIGINT: 130, signal.SIGTERM: 143}.items():
        root = Path(f"runs-{status}")
        process = start([*arguments, f"--trainer.default_root_dir={root}"], in_group=True)
        while not list(root.glob("*/checkpoints/last.ckpt")):
            assert process.is_alive()
            time.sleep(0.1)
        os.killpg(process.pid, signum)
        process.join(60)
        assert process.exitcode == status


def test_noise_differs_by_seed_epoch_batch_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for seed, epoch, batch_idx, rank in product((0, 1), repeat=4):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy)
        ResumeExactly().on_train_batch_start(trainer, None, None, batch_idx)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 16


def test_within_an_epoch_other_batches_are_refused(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tiny("fit", fruits, at("on_train_batch_end", 0, 1))) == 143
    for name, saved in {
        "data.init_args.batch_size": 4,
        "data.init_args.seed": 0,
        "trainer.overfit_batches": 0.0,
    }.items():
        assert run(tiny("fit", fruits, f"--{name}=3", GO_ON)) == 2
        setting = name.rpartition(".")[2]
        said = f"error: this checkpoint was saved mid-epoch with {setting} {saved}, now 3. Use the same, or"
        assert said in capfd.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_data_is_read_ends_the_run_at_once(
    signum: int, fruits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FruitsDataModule, "prepare_data", lambda self: os.kill(os.getpid(), signum))
    assert run(tiny("fit", fruits)) == 128 + signum
    assert "Traceback" not in capfd.readouterr().err


def test_a_quick_try_leaves_no_checkpoint_and_names_no_folder_that_is_not_there(
    fruits: Path, vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tiny("fit", fruits, "--trainer.fast_dev_run=true"))
    assert not list(Path().rglob("*.ckpt"))
    capsys.readouterr()
    run = main(tiny("validate", fruits, f"--ckpt_path={last(vae_run)}", "--trainer.fast_dev_run=true"))
    assert not run.run_folder.exists()
    assert run.run_folder.name not in capsys.readouterr().out


def assert_logged_once(folder: Path, history: list[dict[str, Any]] | None = None) -> None:
    """Every number in metrics.csv is in Weights & Biases exactly once, no picture twice, and no step is missing."""
    history = [record["item"] for record in read_wandb(folder)["history"]] if history is None else history
    found = [(item["trainer/global_step"], name, value) for item in history for name, value in item.items()]
    numbers = [row for row in found if isinstance(row[2], float) and "/" in row[1] and "." not in row[1]]
    wanted = [
        (int(row["step"]), name, pytest.approx(float(row[name])))
        for row in metrics(folder)
        for name in row
        if "/" in name and row[name]
    ]
    assert sorted(numbers) == sorted(wanted, key=lambda row: row[:2])
    pictures = [(step, name) for step, name, value in found if name.endswith("._type") or isinstance(value, dict)]
    assert len(pictures) == len(set(pictures))
    assert [item["_step"] for item in history] == list(range(len(history)))


def kill_at_random(arguments: list[str], when: random.Random, kills: int) -> int:
    """Run train.py to its end in spite of ``kill -9``, and return how many times it was killed."""
    for killed in range(kills):
        process = start(arguments)
        process.join(when.uniform(0.5, 2.5))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return killed
    assert run(arguments) == 0
    return kills


@pytest.mark.usefixtures("wandb_offline")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_were_not(seed: int, fruits: Path) -> None:
    arguments = tiny("fit", fruits, "--trainer.max_epochs=6")
    assert run(arguments) == 0
    often = "--trainer.callbacks+={class_path: callbacks.SaveLast, init_args: {every_n_train_steps: 1}}"
    arguments += ["--trainer.default_root_dir=killed", "--ckpt_path=last", often]
    killed = kill_at_random(arguments, random.Random(seed), kills=6 if seed else 2)
    folder = max(Path("killed").iterdir())  # others may have been killed before their first checkpoint
    print(f"killed {killed} times")
    assert killed >= 1
    assert_same(folder, expected=only("runs"))
    assert_logged_once(folder)
    assert list(folder.rglob(".*")) == []
