import base64
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer

from colorization.__main__ import main as colorize
from tests.test_resuming import assert_logged_once, at, flatten, only, run, run_two
from tests.wandb_server import WandbServer
from tests.world import last, read_wandb, tiny
from train import PigmentCLI, main
from vae.__main__ import main as vae

UPLOADING = "--trainer.callbacks+=callbacks.LogCheckpoints"


def uploaded(server: WandbServer) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return each checkpoint that the server has and its metadata, by its aliases."""
    found: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for artifact in server.artifacts.values():
        assert artifact["state"] == "COMMITTED"
        contents = json.loads(server.files[f"/manifest/{artifact['id']}"])["contents"]
        data = server.files[f"/artifact/{artifact['id']}/model.ckpt"]
        assert contents.keys() == {"model.ckpt"}
        assert contents["model.ckpt"]["digest"] == base64.b64encode(hashlib.md5(data).digest()).decode()
        found |= {one["alias"]: (data, json.loads(artifact["metadata"])) for one in artifact["aliases"]}
    return found


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Return the checkpoints of a run, by what would be their alias."""
    paths = (folder / "checkpoints").iterdir()
    return {path.stem.partition("-")[0]: path.read_bytes() for path in paths}


def test_a_stopped_run_goes_on_on_another_machine(
    server: WandbServer,
    fruits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = tiny("fit", fruits, UPLOADING)
    assert run([*arguments, at("on_train_batch_start", 1, 2)]) == 143
    stopped = only("runs")
    address = f"wandb:me/pigment/{stopped.name}"
    sent, files = uploaded(server), checkpoints(stopped)
    assert {alias: sent[alias][0] for alias in ("best", "last")} == files
    model = {"class": "vae.ConvVAE", "image_size": 16, "latent_dim": 4, "lr": 0.001}
    model |= {"lr_schedule": "constant", "likelihood": "fixed", "activation": "none"}
    loss = pytest.approx(server.summary["val/loss"]["min"])
    assert sent["best"][1] == {"epoch": 0, "step": 4, "val/loss": loss, "model": model}
    assert sent["last"][1] == {"epoch": 1, "step": 6, "val/loss": loss, "model": model}

    monkeypatch.setenv("PIGMENT_CACHE", "another/cache")
    for name, path in {"here.png": f"{stopped}/checkpoints/last.ckpt", "there.png": f"{address}:last"}.items():
        assert vae(["sample", f"--ckpt={path}", f"--out={name}", "--sampler=prior"]) == 0
    assert Path("here.png").read_bytes() == Path("there.png").read_bytes()
    server.cuts_off = True  # it is not downloaded again
    assert vae(["sample", f"--ckpt={address}:last", "--out=again.png"]) == 0
    server.cuts_off = False

    server.summary["val/loss"] = {"min": 1.0}  # as if an earlier epoch had been better than any to come
    del server.history[-3:]  # step 5 and the film strips were lost on their way
    Path("runs").rename("runs on the first machine")
    there = [*arguments, "--trainer.default_root_dir=elsewhere"]
    with pytest.raises(SystemExit, match="143"):  # before it has come as far as the first machine
        main([*there, f"--ckpt_path={address}:best", at("on_train_batch_start", 1, 1)])
    assert any(f"the run goes on in {Path('elsewhere', stopped.name)}" in said for said in caplog.messages)
    assert f"W&B: has the checkpoints; on any machine, --ckpt_path {address}:last" in caplog.messages  # no best yet
    assert run([*there, "--ckpt_path=last"]) == 0
    main(tiny("fit", fruits, "--trainer.default_root_dir=whole", "--trainer.logger=callbacks.ResumableCSVLogger"))
    found, wanted = (
        dict(flatten({name: end[name] for name in ("state_dict", "optimizer_states", "loops")}, ""))
        for end in (torch.load(only(root) / "checkpoints" / "last.ckpt") for root in ("elsewhere", "whole"))
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
    assert_logged_once(only("whole"), [json.loads(line) for line in server.history])
    assert server.summary["val/loss"] == {"min": 1.0}

    monkeypatch.setenv("PIGMENT_CACHE", "third/cache")
    server.cuts_off = True
    capfd.readouterr()
    assert vae(["sample", f"--ckpt={address}:last", "--out=never.png"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert f"'{address}:last' cannot be downloaded: " in line
    assert [path.name for path in Path("third/cache").rglob("*.*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("ckpt", "said"),
    [
        ("wandb:me/pigment/run", "wandb:entity/project/artifact:alias, such as"),
        ("wandb:run:best", "wandb:entity/project/artifact:alias, such as"),
        ("wandb:me/pigment/run:best", "cannot be downloaded: artifact membership 'run:best' not found in 'me/pigment'"),
    ],
)
def test_an_address_of_no_checkpoint_gets_a_line(
    ckpt: str, said: str, server: WandbServer, paintings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert colorize([str(paintings), "--out=colorized", f"--ckpt={ckpt}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"error: '{ckpt}' ")
    assert said in line


@pytest.mark.usefixtures("wandb_offline")
def test_without_a_login_one_line_says_what_to_do(
    fruits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WANDB_MODE": "online", "HOME": str(fruits)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        main(tiny("test", fruits, "--ckpt_path=wandb:me/pigment/run:best"))
    (line,) = capfd.readouterr().err.splitlines()
    assert "is on W&B's server, but W&B is offline: nobody is logged in. Run wandb login" in line


def test_offline_checkpoints_wait_for_the_upload_and_a_kill_doubles_nothing(
    server: WandbServer, fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = tiny("fit", fruits, UPLOADING)
    assert run([*arguments, at("on_train_batch_start", 0, 2)]) == 143
    assert run([*arguments, "--ckpt_path=last", at("on_train_batch_start", 1, 2, signal.SIGKILL)]) == -signal.SIGKILL
    assert run([*arguments, "--ckpt_path=last"]) == 0
    assert_logged_once(only("runs"))
    aliases = [{*record["aliases"]} - {"latest"} for record in read_wandb(only("runs"))["artifact"]]
    assert aliases == [{"last"}, {"best", "last"}]  # from where it was stopped, and from its end

    monkeypatch.setenv("WANDB_MODE", "online")
    logs = sorted(map(str, only("runs").glob("wandb/offline-run-*")))
    subprocess.run([sys.executable, "-m", "wandb", "sync", *logs], check=True, capture_output=True)
    sent = uploaded(server)
    assert {alias: sent[alias][0] for alias in ("best", "last")} == checkpoints(only("runs"))


@pytest.mark.usefixtures("wandb_offline")
def test_a_checkpoint_of_weights_alone_is_uploaded_too(fruits: Path) -> None:
    bare = "{class_path: callbacks.SaveBest, init_args: {monitor: val/loss, save_weights_only: true}}"
    callbacks = f"--trainer.callbacks=[callbacks.SaveLast, {bare}, callbacks.LogCheckpoints]"
    main(tiny("fit", fruits, "--trainer.max_epochs=1", callbacks))
    wandb.finish()
    sent = {(*sorted(one["aliases"]),): json.loads(one["metadata"]) for one in read_wandb(only("runs"))["artifact"]}
    assert sent.keys() == {("best", "latest"), ("last", "latest")}
    assert sent["best", "latest"].keys() == {"epoch", "step", "model"}
    assert sent["last", "latest"].keys() == {"epoch", "step", "val/loss", "model"}


class Finish(Callback):
    """A forked process ends without telling W&B."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        wandb.finish()


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_one_of_two_processes_uploads_and_shows_a_table(fruits: Path) -> None:
    finish = f"--trainer.callbacks+={__name__}.Finish"
    assert run_two(tiny("fit", fruits, UPLOADING, finish)) == 0
    fitted = only("runs")
    aliases = [alias for record in read_wandb(fitted)["artifact"] for alias in record["aliases"]]
    assert aliases.count("best") == aliases.count("last") == 1
    assert run_two(tiny("test", fruits, f"--ckpt_path={fitted}/checkpoints/last.ckpt", finish)) == 0
    (tested,) = (folder for folder in Path("runs").iterdir() if folder != fitted)
    history = [record["item"] for record in read_wandb(tested)["history"]]
    assert [item["test/images.nrows"] for item in history if "test/images._type" in item] == [4]  # of 7, its own


def test_a_table_arrives_with_its_pictures(server: WandbServer, vae_run: PigmentCLI) -> None:
    main(tiny("test", vae_run.datamodule.folder, f"--ckpt_path={last(vae_run)}"))
    (artifact,) = server.artifacts.values()
    contents = json.loads(server.files[f"/manifest/{artifact['id']}"])["contents"]
    arrived = {path: server.files[f"/artifact/{artifact['id']}/{path}"] for path in contents}
    for path, data in arrived.items():
        assert contents[path]["digest"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    table = json.loads(arrived["test/images.table.json"])
    assert table["columns"] == ["original", "reconstruction", "PSNR", "path"]
    assert len(table["data"]) == len(vae_run.datamodule.images("val"))
    shown = {picture["path"] for row in table["data"] for picture in row[:2]}
    assert shown == arrived.keys() - {"test/images.table.json"}
