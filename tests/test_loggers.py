import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import ResumableCSVLogger
from resuming import loggers
from resuming.loggers import as_event, find_in_wandb, sync_command
from resuming.loggers import read_wandb as read_wandb_log
from tests.test_resuming import assert_logged_once, at, only, run
from tests.wandb_server import WandbServer
from tests.world import metrics, read_wandb, tiny
from train import main

pytestmark = pytest.mark.usefixtures("wandb_offline")


def test_the_line_that_uploads_a_run_can_be_pasted_whatever_its_folders_name() -> None:
    assert sync_command(Path("runs/my best run")) == "wandb sync 'runs/my best run'/wandb/offline-run-*"


def test_where_wandb_has_a_run_is_what_the_run_said_last_unless_some_of_it_is_only_here(tmp_path: Path) -> None:
    assert find_in_wandb(tmp_path) is None
    log = tmp_path / "wandb" / "run-1" / "files" / "output.log"
    log.parent.mkdir(parents=True)
    assert find_in_wandb(tmp_path) == "online"
    log.write_text("Fetching https://x.org/runs/data.zip\nW&B       https://wandb.ai/me/runs/1\n")
    assert find_in_wandb(tmp_path) == "https://wandb.ai/me/runs/1"
    offline = tmp_path / "wandb" / "offline-run-2"
    offline.mkdir()
    assert find_in_wandb(tmp_path) == "offline"
    (offline / "run-2.wandb.synced").touch()
    assert find_in_wandb(tmp_path) == "https://wandb.ai/me/runs/1"


def test_a_new_name_makes_a_new_column_and_keeps_the_rows(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(str(tmp_path / "run"))
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.log_metrics({"loss": 0.25}, step=1)
    logger.log_metrics({"accuracy": float("nan")}, step=1)
    logger.log_metrics({"loss": 0.125}, step=2)
    text = "accuracy,loss,step\n,0.5,0\n,0.25,1\nnan,,1\n,0.125,2\n"
    assert (tmp_path / "run" / "metrics.csv").read_text() == text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_what_is_logged_again_is_left_out(tmp_path: Path) -> None:
    for _ in range(2):
        logger = ResumableCSVLogger(str(tmp_path))
        for step in range(3):
            logger.log_metrics({"loss": step / 8}, step)
            logger.log_metrics({"accuracy": step / 4}, step)
        assert [row["step"] for row in metrics(tmp_path)] == ["0", "0", "1", "1", "2", "2"]
    logger.log_metrics({"loss": 1.0}, step=3)
    assert metrics(tmp_path)[-1] == {"accuracy": "", "loss": "1.0", "step": "3"}


def test_an_empty_text_keeps_its_column(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(str(tmp_path))
    for step, row in enumerate(({"loss": 0.5}, {"phase": ""}, {"loss": 0.25})):
        logger.log_metrics(row, step)
    assert (tmp_path / "metrics.csv").read_text() == "loss,phase,step\n0.5,,0\n,,1\n0.25,,2\n"


@pytest.mark.parametrize("tail", ["2,,0.7", "2", chr(0) * 40, "2,,0.75" + chr(0) * 9 + chr(10)])
def test_a_torn_last_row_is_dropped(tail: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("accuracy,loss,step\n,0.5,0\n,0.25,1\n" + tail)
    logger = ResumableCSVLogger(str(tmp_path))
    logger.rewind(3)
    assert (tmp_path / "metrics.csv").read_text() == "loss,step\n0.5,0\n0.25,1\n"
    logger.rewind(1)
    assert metrics(tmp_path) == [{"loss": "0.5", "step": "0"}]


@pytest.mark.parametrize("kept", [*(pytest.param(kept, marks=pytest.mark.slow) for kept in (1.0, 0.6)), 0.0])
def test_weights_and_biases_gets_what_a_kill_made_it_lose(kept: float, fruits: Path) -> None:
    """A kill cuts its log off, wherever its own process had reached."""
    arguments = tiny("fit", fruits)
    assert run([*arguments, at("on_validation_batch_start", 1, 1)]) == 143
    (log,) = only("runs").glob("wandb/offline-run-*/*.wandb")
    log.write_bytes(log.read_bytes()[: max(7, int(kept * log.stat().st_size))])  # the header is there from the start
    assert run([*arguments, "--ckpt_path=last"]) == 0
    assert_logged_once(only("runs"))
    assert len({record["run_id"] for record in read_wandb(only("runs"))["run"] if "run_id" in record}) == 1


class LogText(Callback):
    """Log a word at the end of each epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        words: Any = {"phase": f"epoch {trainer.current_epoch}"}
        for logger in trainer.loggers:
            logger.log_metrics(words, trainer.global_step)


@pytest.mark.slow
def test_text_that_a_callback_logs_survives_a_stop(fruits: Path) -> None:
    arguments = tiny("fit", fruits, f"--trainer.callbacks+={__name__}.LogText")
    assert run([*arguments, at("on_validation_batch_start", 1, 1)]) == 143
    assert run([*arguments, "--ckpt_path=last"]) == 0
    words = [row["phase"] for row in metrics(only("runs")) if row["phase"]]
    assert words == ["epoch 0", "epoch 1"]
    logged = [record["item"].get("phase") for record in read_wandb(only("runs"))["history"]]
    assert [word for word in logged if word] == ["epoch 0", "epoch 1"]


def test_a_run_goes_on_though_the_log_of_weights_and_biases_cannot_be_read(
    fruits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if W&B had renamed the command that reads it."""
    run_of = main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    monkeypatch.setattr(loggers, "READ_LOG", ("-m", "wandb", "no-such-command"))
    again = main(tiny("fit", fruits, "--ckpt_path=last"))
    assert again.run_folder == run_of.run_folder
    assert [row["step"] for row in metrics(again.run_folder) if row["val/loss"]] == ["3", "7"]
    assert any("points may appear twice" in said for said in caplog.messages)


def test_a_resumed_run_goes_on_online(server: WandbServer, fruits: Path) -> None:
    arguments = tiny("fit", fruits)
    assert run([*arguments, at("on_validation_batch_start", 1, 1)]) == 143
    del server.history[4:]  # the rest was lost on its way
    server.summary.clear()
    assert run([*arguments, "--ckpt_path=last"]) == 0
    assert_logged_once(only("runs"), [json.loads(line) for line in server.history])


class KillServer(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/die", data=b"")


def test_a_server_that_dies_costs_nothing_but_the_upload(
    server: WandbServer, fruits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "false")
    monkeypatch.setattr(loggers, "UPLOAD_SECONDS", 2)
    assert run(tiny("fit", fruits, f"--trainer.callbacks+={__name__}.KillServer")) == 0
    assert server.is_dead
    assert "wandb sync" in capfd.readouterr().err
    assert [row["epoch"] for row in metrics(only("runs")) if row["train/loss"]] == ["0", "1"]
    (log,) = only("runs").glob("wandb/run-*/*.wandb")  # what such an upload begins with
    there = {(step, name) for step, names in map(as_event, read_wandb_log(log)) for name in names}
    assert {(int(row["step"]), "train/loss") for row in metrics(only("runs")) if row["train/loss"]} <= there


def test_a_run_goes_on_though_the_server_does_not_say_what_it_has(
    server: WandbServer, fruits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tiny("fit", fruits, "--trainer.max_epochs=1")) == 0
    shutil.rmtree(only("runs") / "wandb")  # as on another machine
    monkeypatch.setattr(loggers, "UPLOAD_SECONDS", 2)
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 2)
    main(tiny("fit", fruits, "--ckpt_path=last", f"--trainer.callbacks+={__name__}.KillServer"))
    assert [row["step"] for row in metrics(only("runs")) if row["val/loss"]] == ["3", "7"]
    (line,) = [said for said in caplog.messages if "points may appear twice" in said]
    assert "\n" not in line
