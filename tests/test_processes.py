"""Several processes train as one does."""

import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing import ProcessRaisedException

import train
from datamodules.folder import Order
from system.errors import PigmentError
from tests.test_resuming import CALIBRATED, COLORIZER, RESIDUAL, at, metrics, only, run, run_two
from tests.test_samples import SAMPLERS, measuring, results
from tests.world import last, tiny, write_painting


@pytest.fixture
def odd(paintings: Path) -> Path:
    """15 paintings to train on and 7 to validate: two processes cannot share them evenly."""
    rng = np.random.default_rng(1)
    for part in ("training_set", "validation_set"):
        write_painting(paintings / part / "painting" / "odd.jpg", 0.5, rng)
    return paintings


def test_they_take_the_same_steps(paintings: Path) -> None:
    for name in ("14.jpg", "15.jpg"):  # 16, so that all batches are whole
        write_painting(paintings / "training_set" / "painting" / name, 0.5, np.random.default_rng(len(name)))
    flip = "--data.init_args.flip=true"
    assert run(tiny("fit", paintings, flip, config=COLORIZER)) == 0
    two = ["--data.init_args.batch_size=2", "--trainer.default_root_dir=two"]
    assert run_two(tiny("fit", paintings, flip, *two, config=COLORIZER)) == 0
    for row, expected in zip(metrics(only("two")), metrics(only("runs")), strict=True):
        for name in row.keys() - {"train/loss_step"}:  # which is rank zero's
            if expected[name]:
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
    weights, expected = (
        torch.load(only(root) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for root in ("two", "runs")
    )
    for name, weight in weights.items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name


@pytest.mark.parametrize("name", ["2_deep_rmsprop.yaml", "7_resnet_adam.yaml", "10_palette.yaml"])
def test_they_train_the_other_networks_too(name: str, odd: Path) -> None:
    assert run_two(tiny("fit", odd, config=COLORIZER.with_name(name))) == 0
    losses = [float(row["val/loss"]) for row in metrics(only("runs")) if row["val/loss"]]
    assert len(losses) == 2
    assert all(0 < loss < (10 if name == "10_palette.yaml" else 1) for loss in losses)


@pytest.mark.parametrize("config", [CALIBRATED, RESIDUAL], ids=lambda config: config.stem)
def test_they_share_one_variance(config: Path, fruits: Path) -> None:
    one_step = [  # of three
        "--trainer.limit_train_batches=0.34",
        "--trainer.max_epochs=1",
        "--data.init_args.batch_size=2",
    ]
    assert run_two(tiny("fit", fruits, *one_step, config=config)) == 0
    found = {name: float(value) for row in metrics(only("runs")) for name, value in row.items() if value}
    # the processes' mean likelihood, each at its own variance, would be less
    likeliest = 3 * 16**2 / 2 * (1 + math.log(2 * math.pi * found["train/sigma"] ** 2))
    assert found["train/reconstruction"] == pytest.approx(likeliest, rel=1e-6)
    assert found["val/sigma"] == pytest.approx(found["train/sigma"])


def test_they_measure_samples_as_one_does(vae_run: train.PigmentCLI) -> None:
    color = {"class_path": "tests.test_samples.Color"}
    config = measuring(num_samples=512, features=color)  # each process draws a batch that a single one draws, too
    arguments = tiny("test", vae_run.datamodule.folder, f"--ckpt_path={last(vae_run)}", config=config)
    assert run(arguments) == 0
    assert run_two([*arguments, "--trainer.default_root_dir=two"]) == 0
    one, two = results(only("runs")), results(only("two"))
    for sampler in (*SAMPLERS, "training", "reconstruction"):
        for measure in ("fid", "density", "coverage", "nearer_than_real"):
            assert two[f"{sampler}_{measure}"] == pytest.approx(one[f"{sampler}_{measure}"], rel=1e-4), measure
        # of random subsets
        assert two[f"{sampler}_kid"] == pytest.approx(one[f"{sampler}_kid"], rel=0.05, abs=0.01)


def test_they_count_each_validation_image_once(odd: Path) -> None:
    assert run(tiny("fit", odd, "--trainer.max_epochs=1", config=COLORIZER)) == 0
    for stage in ("validate", "test"):
        for root, start in {f"{stage}-one": run, f"{stage}-two": run_two}.items():
            checkpoint = f"--ckpt_path={only('runs') / 'checkpoints' / 'last.ckpt'}"
            assert start(tiny(stage, odd, checkpoint, f"--trainer.default_root_dir={root}", config=COLORIZER)) == 0
        (one,), (two,) = metrics(only(f"{stage}-one")), metrics(only(f"{stage}-two"))
        assert {name: float(value) for name, value in two.items()} == {
            name: pytest.approx(float(value), rel=1e-5) for name, value in one.items()
        }


def test_they_predict_each_image_once(odd: Path) -> None:
    assert run(tiny("fit", odd, "--trainer.max_epochs=1", config=COLORIZER)) == 0
    assert run_two(tiny("predict", odd, "--ckpt_path=last", config=COLORIZER)) == 0
    pictures = [path.name for path in Path("runs").glob("*/media/predictions/*")]
    assert sorted(pictures) == ["batch_0000_rank_0.png", "batch_0000_rank_1.png"]


def test_they_share_the_training_images_and_leave_out_another_one_in_each_epoch() -> None:
    left_out = set()
    for epoch in range(5):
        orders = [Order(range(15), 2, rank, seed=0, batch_size=2) for rank in (0, 1)]
        for order in orders:
            order.set_epoch(epoch)
        first, second = map(set, orders)
        assert (len(first), len(second), first & second) == (7, 7, set())
        left_out |= set(range(15)) - first - second
    assert len(left_out) > 1


def test_they_share_the_images_that_they_overfit() -> None:
    assert [list(Order(range(5), 2, rank, seed=0, batch_size=2, shuffle=False)) for rank in (0, 1)] == [[0, 2], [1, 3]]


def test_too_few_images_for_the_processes_are_missed_before_training(
    odd: Path,
) -> None:
    for file in sorted((odd / "validation_set" / "painting").iterdir())[1:]:
        file.unlink()
    with pytest.raises(ProcessRaisedException, match=r"only 1 in val, which needs 2\."):
        run_two(tiny("fit", odd, config=COLORIZER))


LAUNCHERS = {
    "ddp": [sys.executable, train.__file__],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", train.__file__],
}


class Linger(Callback):
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:  # busy with pictures or with W&B
            time.sleep(7)  # longer than the launcher waits


@pytest.mark.parametrize("launcher", ["ddp", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_signal_to_the_first_process_saves_and_stops_all(launcher: str, odd: Path, tmp_path: Path) -> None:
    arguments = tiny("fit", odd, "--trainer.devices=2", "--trainer.strategy=ddp", config=COLORIZER)
    arguments += ["--ckpt_path=last", "--trainer.enable_progress_bar=false"]
    arguments += [f"--trainer.callbacks+={__name__}.Linger"] if launcher == "ddp" else []
    log, tests = tmp_path / "log.txt", Path(__file__).parent
    with log.open("w") as file:
        process = subprocess.Popen(
            [*LAUNCHERS[launcher], *arguments, "--trainer.max_epochs=100000"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},  # where Linger is found
        )
    while not list(Path("runs").glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=60)
    assert "SIGTERM: stopped after step" in log.read_text()
    assert status == (143 if launcher == "ddp" else 1)  # torchrun's own status
    stopped = torch.load(only("runs") / "checkpoints" / "last.ckpt", weights_only=True)
    assert run_two([*arguments, f"--trainer.max_epochs={stopped['epoch'] + 1}"]) == 0
    assert only("runs")  # resumed the same run


class Fail(Callback):
    """In the second step some processes fail, and the others wait for them as NCCL does: they notice nothing."""

    def __init__(self, ranks: list[int], signum: int | None = None) -> None:
        self.ranks, self.signum = ranks, signum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            if trainer.global_rank not in self.ranks:
                time.sleep(600)
            if self.signum:
                os.kill(os.getpid(), self.signum)
            raise PigmentError("out of paint")


def failing(ranks: list[int], signum: int | None = None) -> str:
    args = f"{{ranks: {ranks}, signum: {'null' if signum is None else int(signum)}}}"
    return f"--trainer.callbacks+={{class_path: {__name__}.Fail, init_args: {args}}}"


def main_as(rank: int, port: int, arguments: list[str], most_bytes: int) -> None:
    """Run train.py as one of two processes that a launcher has started; the first may write files up to a size."""
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    train.main([*arguments, "--trainer.devices=2", "--trainer.strategy=ddp"])


@pytest.mark.parametrize(
    ("more", "most_bytes", "status", "said"),
    [
        ([], 100_000, 2, ".ckpt' cannot be written and is unchanged: File too large"),
        ([failing([1])], resource.RLIM_INFINITY, 2, "out of paint"),
        ([failing([0, 1])], resource.RLIM_INFINITY, 2, "out of paint"),
        ([failing([0], signal.SIGKILL)], resource.RLIM_INFINITY, -signal.SIGKILL, ""),
    ],
    ids=["full-disk", "second", "both", "killed"],
)
def test_if_one_fails_all_end(
    more: list[str], most_bytes: int, status: int, said: str, paintings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, port = tiny("fit", paintings, *more, config=COLORIZER), find_free_network_port()
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=main_as, args=(rank, port, arguments, most_bytes)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)  # a 30th of the time for which processes wait for each other
    statuses = [process.exitcode for process in both]
    for process in both:
        process.kill()
    error = capfd.readouterr().err
    assert (statuses[0], None in statuses, "Traceback" in error) == (status, False, False), error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert [said in line for line in lines] == [True] * (status > 0)


def fail_and_go_on(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        train.main([*arguments, failing([0])])
    train.main([*arguments, "--trainer.max_epochs=1"])


def test_after_a_run_that_failed_the_same_process_can_train_another(paintings: Path) -> None:
    alone = ["--trainer.devices=1", "--trainer.strategy=ddp"]  # with a process group, which outlives a run
    process = multiprocessing.get_context("fork").Process(
        target=fail_and_go_on, args=(tiny("fit", paintings, *alone, config=COLORIZER),)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(list(Path("runs").glob("*/checkpoints/last.ckpt"))) == 1


class Slow(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        time.sleep(0.2)


def test_a_signal_is_heeded_in_seconds_though_an_epoch_has_many_steps(paintings: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(60):
        write_painting(paintings / "training_set" / "painting" / f"more_{index}.jpg", 0.5, rng)
    slow = [f"--trainer.callbacks+={__name__}.Slow", at("on_train_batch_end", 0, 1, rank=1)]
    assert run_two(tiny("fit", paintings, "--data.init_args.batch_size=2", *slow, config=COLORIZER)) == 143
    stopped = torch.load(only("runs") / "checkpoints" / "last.ckpt", weights_only=True)
    assert stopped["global_step"] < 12  # of 18 in the epoch


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "torchrun"])
def test_the_status_is_that_of_the_process_that_failed(launcher: str, paintings: Path) -> None:
    arguments = tiny("fit", paintings, failing([1]), "--trainer.devices=2", "--trainer.strategy=ddp", config=COLORIZER)
    tests = Path(__file__).parent
    done = subprocess.run(
        [*LAUNCHERS[launcher], *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
    )
    assert done.returncode == (2 if launcher == "ddp" else 1), done.stderr  # torchrun's own status
    assert done.stderr.count("error: out of paint") == 1


@pytest.mark.parametrize(
    ("started", "devices", "said"),
    [
        ({"SLURM_NTASKS": "1"}, 2, "starts 1. In SLURM, use #SBATCH --nodes=1 --ntasks-per-node=2, then srun"),
        ({"SLURM_NTASKS": "2"}, 2, "Use `--ntasks-per-node=2` instead."),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, 1, "Set `devices=2`."),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"}, 1, "Set `num_nodes=2`."),
    ],
)
def test_slurm_must_start_a_process_for_each_device(
    started: dict[str, str],
    devices: int,
    said: str,
    paintings: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        train.main(tiny("fit", paintings, f"--trainer.devices={devices}", config=COLORIZER))
    error = capsys.readouterr().err
    assert (stop.value.code, error.startswith("error: "), error.count("\n") <= 2) == (2, True, True), error
    assert said in error
