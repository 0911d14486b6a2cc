import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

import train
from datamodules import FruitsDataModule
from datamodules.demo import fruits as demo
from tests.test_resuming import callback
from tests.world import CONFIGS, last, live_in, metrics, read_wandb, tiny, write_fruits
from train import PigmentCLI, main
from vae import ConvVAE

pytestmark = pytest.mark.usefixtures("wandb_offline")


def test_a_run_leaves_everything_in_one_folder_and_says_where(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = main(tiny("fit", fruits))
    assert [path.name for path in Path("runs").iterdir()] == [run.run_folder.name]
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.run_folder.name)
    found = {path.name for path in run.run_folder.iterdir()}
    assert {"config.yaml", "checkpoints", "media", "metrics.csv", "wandb"} <= found
    said = capfd.readouterr().out
    for pattern in re.findall(r"runs/\S+", said[said.index("Run  ") :]):
        assert list(Path().glob(pattern)), pattern
    assert re.findall(r"^(\S+) +(?:runs/|wandb )", said, re.MULTILINE) == ["Run", "Best", "Last", "Pictures", "W&B"]
    assert re.search(r"Best +runs/.*/best-epoch\d+.ckpt\n", said)
    assert re.search(r"W&B +wandb sync runs/.*/wandb/offline-run-\*\n", said)


class SpoilLastEpoch(Callback):
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            torch.nn.init.constant_(pl_module.decoder[-1].weight, 100)


def test_two_checkpoints_are_kept_the_best_and_the_truly_last(fruits: Path) -> None:
    spoiled = f"--trainer.callbacks+={__name__}.SpoilLastEpoch"
    run = main(tiny("fit", fruits, "--trainer.max_epochs=3", spoiled))
    losses = [float(row["val/loss"]) for row in metrics(run.run_folder) if row["val/loss"]]
    best = int(np.argmin(losses))
    assert best != 2
    checkpoints = run.run_folder / "checkpoints"
    assert {path.name for path in checkpoints.glob("*.ckpt")} == {f"best-epoch{best:03d}.ckpt", "last.ckpt"}
    for name, num_epochs in {f"best-epoch{best:03d}.ckpt": best + 1, "last.ckpt": 3}.items():
        assert torch.load(checkpoints / name, weights_only=True)["global_step"] == 4 * num_epochs
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in run.model.state_dict().items())


def test_everything_is_in_the_runs_folder_whatever_loggers_there_are(fruits: Path) -> None:
    own = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: mine}}"
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1", f"--trainer.logger={own}"))
    assert {path.name for path in run.run_folder.iterdir()} >= {"checkpoints", "config.yaml", "media"}


def test_nothing_is_logged_for_single_steps_if_they_are_not_asked_for(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=0"))
    (row,) = [row for row in metrics(run.run_folder) if row["train/loss"]]
    assert "train/loss_step" not in row


def test_two_processes_make_one_run(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.devices=2", "--trainer.strategy=ddp_fork"))
    (folder,) = Path("runs").iterdir()
    assert [row["step"] for row in metrics(folder) if row["val/loss"]] == ["1", "3"]  # 14 images, 4 on each of two
    assert len(list((folder / "media" / "samples").iterdir())) == 2
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in run.model.state_dict().items())


def test_a_runs_own_config_repeats_it(fruits: Path) -> None:
    first = main(tiny("fit", fruits, "--seed_everything=7"))
    again = main(["fit", f"--config={first.run_folder / 'config.yaml'}"])
    assert again.run_folder != first.run_folder
    expected = first.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    assert metrics(again.run_folder) == metrics(first.run_folder)
    # the first being offline does not decide it for the second
    loggers = yaml.safe_load((first.run_folder / "config.yaml").read_text())["trainer"]["logger"]
    assert [logger["init_args"]["mode"] for logger in loggers if "Wandb" in logger["class_path"]] == [None]


@pytest.mark.parametrize(
    ("config", "pictures"),
    [
        (
            "vae",
            {"reconstructions": [3, 7, 11], "samples": [3, 11], "film/reconstructions": [11], "film/samples": [11]},
        ),
        ("colorization/4_shallow_adam", {"colorizations": [3, 11], "film/colorizations": [11]}),
    ],
)
def test_weights_and_biases_holds_what_the_run_folder_holds(
    config: str, pictures: dict[str, list[int]], paintings: Path
) -> None:
    run = main(tiny("fit", paintings, "--trainer.max_epochs=3", config=CONFIGS / f"{config}.yaml"))
    records = read_wandb(run.run_folder)
    history = [record["item"] for record in records["history"]]

    for row in metrics(run.run_folder):
        for name in row.keys() - {"epoch", "step"}:
            if row[name]:
                logged = [
                    item[name] for item in history if item["trainer/global_step"] == int(row["step"]) and name in item
                ]
                assert logged == [pytest.approx(float(row[name]))], name
    steps = [item["trainer/global_step"] for item in history]
    assert steps == sorted(steps)

    for key, at in {**pictures, "curves": [3, 11]}.items():
        items = [item for item in history if f"{key}.filenames" in item]
        assert [item["trainer/global_step"] for item in items] == at
        files = [records["folder"][0]["path"] / item[f"{key}.filenames"][0] for item in items]
        shown = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        assert [picture.std() > 10 and picture.mean() > 10 for picture in shown] == [True] * len(at)  # not black
        assert len({picture.tobytes() for picture in shown}) == len(at)  # nor frozen

    (run_record, *_) = (record for record in records["run"] if "display_name" in record or "run_id" in record)
    assert run_record["run_id"] == run.run_folder.name
    name = Path(config).name
    assert run_record["run_group"] == f"{name} · paintings"
    assert run_record["display_name"] == f"{name} · paintings · seed 0"
    assert run_record["notes"].startswith(f"Repeat: python train.py fit --config={CONFIGS / config}.yaml --data")
    assert run_record["job_type"] == "fit"

    (logged,) = (record["update"] for record in records["config"] if "model" in record["update"])
    saved = yaml.safe_load((run.run_folder / "config.yaml").read_text())
    for part in ("model", "data"):
        assert {"class": saved[part]["class_path"], **saved[part]["init_args"]}.items() <= logged[part].items()
    assert logged["trainer"]["max_epochs"] == 3
    assert not logged["trainer"].keys() & {"logger", "default_root_dir", "num_nodes", "fast_dev_run"}

    assert summary_of(records)["val/loss"] == {"min": min(item["val/loss"] for item in history if "val/loss" in item)}
    best = {record["name"]: record["summary"] for record in records["metric"] if "val/" in record.get("name", "")}
    assert best["val/psnr"] == {"max": True}
    assert best["val/ciede2000"] == {"min": True}


def summary_of(records: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what W&B's table of runs shows at the end."""
    return {name: value for record in records["summary"] for name, value in record["update"].items()}


def test_what_the_user_says_of_a_run_stays(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_IMAGES", {"Training": 1, "Test": 1})
    monkeypatch.setenv("WANDB_NOTES", "a walk")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    wandb.teardown()  # or it would ignore the variable
    arguments = tiny("fit", Path("null"), "--trainer.max_epochs=1", "--trainer.logger.tags=[mine]")
    run = main([*arguments, "--trainer.logger.name=My run"])
    said = read_wandb(run.run_folder)["run"][0]
    wanted = ("My run", "ours", "a walk", ["mine", "vae", "demo"])
    assert (said["display_name"], said["run_group"], said["notes"], said["tags"]) == wanted
    saved = run.run_folder / "config.yaml"
    monkeypatch.delenv("WANDB_RUN_GROUP")
    wandb.teardown()
    again = main(["fit", f"--config={saved}", f"--data.init_args.root={fruits}", "--seed_everything=5"])
    said = read_wandb(again.run_folder)["run"][0]
    wanted = ("My run", "ConvVAE · fruits", "a walk", ["mine", "vae"])
    assert (said["display_name"], said["run_group"], said["notes"], said["tags"]) == wanted


def test_validate_and_test_give_the_checkpoints_metrics(vae_run: PigmentCLI) -> None:
    given = vae_run.datamodule.folder, f"--ckpt_path={last(vae_run)}"
    validated = main(tiny("validate", *given)).trainer.callback_metrics
    *_, expected = [row for row in metrics(vae_run.run_folder) if row["val/loss"]]
    assert validated["val/loss"].item() == pytest.approx(float(expected["val/loss"]))

    images = torch.stack([*vae_run.datamodule.images("val")]) / 255
    reconstructed = vae_run.model.reconstruct(images)
    ssim = structural_similarity_index_measure(reconstructed, images, data_range=1.0)
    found = {}
    for precision in ("32-true", "bf16-mixed"):  # bfloat16 products have two digits, too few for SSIM
        found[precision] = main(tiny("test", *given, f"--trainer.precision={precision}")).trainer.callback_metrics
        assert found[precision]["test/ssim"].item() == pytest.approx(ssim.item(), abs=5e-3)
    tested = found["32-true"]
    assert tested["test/loss"].item() == pytest.approx(validated["val/loss"].item())
    error = (reconstructed - images).square().mean(dim=(1, 2, 3))
    assert tested["test/psnr"].item() == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-4)


def test_ckpt_path_last_is_the_checkpoint_that_was_written_last(first: Path, fruits: Path) -> None:
    main(tiny("fit", fruits, "--seed_everything=1", "--trainer.max_epochs=1"))
    checkpoint = first / "checkpoints" / "last.ckpt"
    os.utime(checkpoint)  # now, although its run is older
    validated = main(tiny("validate", fruits, "--ckpt_path=last"))
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in validated.model.state_dict().items())


def test_a_checkpoint_made_without_the_command_line_will_do(fruits: Path) -> None:
    model, data = ConvVAE(16, latent_dim=4, lr=0.001), FruitsDataModule(str(fruits), size=16, batch_size=4)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    trainer.save_checkpoint("here.ckpt")
    validated = main(tiny("validate", fruits, "--ckpt_path=here.ckpt")).trainer.callback_metrics
    assert validated["val/loss"].item() == pytest.approx(trainer.callback_metrics["val/loss"].item())


def test_a_finished_run_goes_on_if_it_is_given_more_epochs(first: Path, fruits: Path) -> None:
    resumed = main(tiny("fit", fruits, "--ckpt_path=last", "--trainer.max_epochs=2"))
    assert resumed.run_folder == first
    assert [row["epoch"] for row in metrics(first) if row["val/loss"]] == ["0", "1"]
    assert resumed.trainer.global_step == 8


def test_home_is_expanded_in_every_path(fruits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    fruits.rename(home / "fruits")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PIGMENT_CACHE", "~/cache")
    saved = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: ~/saved}}"
    (home / "mine.yaml").write_text(f"trainer: {{default_root_dir: ~/runs, callbacks+: [{saved}]}}")
    arguments = [*tiny("fit", Path("~/fruits"), "--trainer.max_epochs=1"), "--config=~/mine.yaml", "--ckpt_path=last"]
    first = main(arguments)
    assert main([*arguments, "--trainer.max_epochs=2"]).run_folder == first.run_folder
    assert {path.name for path in home.iterdir()} >= {"fruits", "mine.yaml", "cache", "runs", "saved"}
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    checkpoint = f"--ckpt_path=~/runs/{first.run_folder.name}/checkpoints/last.ckpt"
    assert main(tiny("validate", Path("~/fruits"), "--config=~/mine.yaml", checkpoint)).trainer


@pytest.fixture(scope="session")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run of one epoch was started."""
    folder = tmp_path_factory.mktemp("one_epoch")
    with pytest.MonkeyPatch.context() as monkeypatch:
        live_in(folder, monkeypatch)
        main(tiny("fit", write_fruits(folder / "fruits"), "--trainer.max_epochs=1"))
    return folder


@pytest.fixture
def first(one_epoch: Path) -> Path:
    """The run's folder, copied to where it would be if this test had trained it."""
    (folder,) = Path(shutil.copytree(one_epoch / "runs", "runs")).iterdir()
    return folder


@pytest.mark.parametrize("best", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_renamed_run_goes_on_in_its_folder_as_the_same_run(best: int, fruits: Path, tmp_path: Path) -> None:
    first = main(tiny("fit", fruits, "--trainer.max_epochs=1")).run_folder
    spoiled = [f"--trainer.callbacks+={__name__}.SpoilLastEpoch"] if best == 0 else []
    Path("runs").rename("moved")
    renamed = (tmp_path / "moved" / first.name).rename(tmp_path / "moved" / "my best run")
    more = ["--trainer.max_epochs=2", *spoiled]
    resumed = main(tiny("fit", fruits, f"--ckpt_path={renamed}/checkpoints/last.ckpt", *more))
    assert not Path("runs").exists()
    assert resumed.run_folder == renamed
    assert [row["epoch"] for row in metrics(renamed) if row["val/loss"]] == ["0", "1"]
    checkpoints = {path.name for path in (renamed / "checkpoints").iterdir()}
    assert checkpoints == {f"best-epoch00{best}.ckpt", "last.ckpt"}
    assert torch.load(renamed / "checkpoints" / "last.ckpt", weights_only=True)["run_id"] == first.name
    records = read_wandb(renamed)
    assert {record["run_id"] for record in records["run"] if "run_id" in record} == {first.name}
    assert not records["run"][-1].keys() & {"display_name", "run_group", "notes", "tags"}  # which W&B then keeps
    losses = [float(row["val/loss"]) for row in metrics(renamed) if row["val/loss"]]
    assert losses.index(min(losses)) == best
    assert summary_of(records)["val/loss"] == {"min": pytest.approx(min(losses))}
    assert [record["item"]["trainer/global_step"] for record in records["history"] if "val/loss" in record["item"]]
    again = main(tiny("fit", fruits, "--trainer.default_root_dir=moved", "--ckpt_path=last", "--trainer.max_epochs=3"))
    assert again.run_folder.name == "my best run"


@pytest.mark.slow
def test_a_link_to_a_checkpoint_leads_to_its_run(first: Path, fruits: Path) -> None:
    Path("best.ckpt").symlink_to(first / "checkpoints" / "last.ckpt")
    resumed = main(tiny("fit", fruits, "--ckpt_path=best.ckpt"))
    assert resumed.run_folder.samefile(first)
    checkpoints = first / "checkpoints"  # on another disk, say
    checkpoints.symlink_to(checkpoints.rename("elsewhere").resolve())
    resumed = main(tiny("fit", fruits, "--ckpt_path=last", "--trainer.max_epochs=3"))
    assert resumed.run_folder == first
    assert [row["epoch"] for row in metrics(first) if row["val/loss"]] == ["0", "1", "2"]


def test_a_checkpoint_may_be_named_from_its_own_folder(
    first: Path, fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first / "checkpoints")
    assert main(tiny("fit", fruits, "--ckpt_path=last.ckpt")).run_folder.samefile("..")
    assert {path.name for path in Path().iterdir()} == {"best-epoch001.ckpt", "last.ckpt"}


def test_a_checkpoint_copied_out_of_its_run_keeps_the_run_id(
    first: Path, fruits: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for copy in (Path("copy.ckpt"), Path("checkpoints/last.ckpt")):  # not every folder of this name is a run's
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(first / "checkpoints" / "last.ckpt", copy)
        resumed = main(tiny("fit", fruits, f"--ckpt_path={copy}", f"--trainer.default_root_dir={copy.stem}"))
        assert resumed.run_folder == Path(copy.stem, first.name)
        where = f"which is in no run's folder; the run goes on in {resumed.run_folder}"
        assert f"Resuming: from {copy}, {where}" in caplog.messages
    assert [row["epoch"] for row in metrics(first) if row["val/loss"]] == ["0"]

    first.rename("on another machine")
    capsys.readouterr()
    main(tiny("fit", fruits, "--ckpt_path=copy.ckpt", "--trainer.default_root_dir=done", "--trainer.max_epochs=1"))
    assert "Best" not in capsys.readouterr().out


@pytest.fixture
def refused(fruits: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run train.py, which must end with status 2, and return the one to three lines that it says."""

    def run(stage: str, *more: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(tiny(stage, fruits, *more))
        assert stop.value.code == 2
        said = capfd.readouterr().err
        lines = said[said.index("error: ") :].splitlines()
        assert len(lines) <= 3
        return "\n".join(lines)

    return run


def test_mistakes_end_in_a_line_that_helps(refused: Callable[..., str]) -> None:
    assert "no folder 'nowhere'" in refused("fit", "--data.init_args.root=nowhere")
    assert "multiple of 4, got 18. Set data.init_args.size to 16" in refused("fit", "--data.init_args.size=18")
    assert "batch_size is 1" in refused("fit", "--data.init_args.batch_size=1")
    assert "max_epochs" in refused("fit", "--trainer.max_epoch=3")
    assert "image_size" in refused("fit", "--model.init_args.image_size=32")
    assert "there is no checkpoint 'nope.ckpt'" in refused("test", "--ckpt_path=nope.ckpt")
    assert "no run in 'runs' has a last.ckpt" in refused("test", "--ckpt_path=last")
    assert "must be 1 or more; lr is -1.0" in refused("fit", "--model.init_args.lr=-1")
    assert "--ckpt_path is missing" in refused("test")
    assert "only GPUs can share BatchNorm's" in refused("fit", "--trainer.sync_batchnorm=true")
    later = "--trainer.callbacks+={class_path: callbacks.SaveLast, init_args: {every_n_minutes: 0}}"
    assert "every_n_minutes is 0.0, must be over 0" in refused("fit", later)
    assert "optimizer" in refused("fit", "--optimizer=torch.optim.SGD", "--optimizer.lr=0.1")
    another = "--trainer.callbacks+=callbacks.LogCurves"
    assert "more than one stateful callback of type `LogCurves`" in refused("fit", another)
    said = refused("fit", "--trainer.enable_checkpointing=false")
    assert said.endswith("found `ModelCheckpoint` in callbacks list.")  # and nothing of devices
    assert "seed_everything: must be between 0 and 4294967295, not -1" in refused("fit", "--seed_everything=-1")
    assert "precision is 64-true, must be 32-true or" in refused("fit", "--trainer.precision=64")
    assert "transformer_engine" in refused("fit", "--trainer.precision=transformer-engine")
    assert not Path("runs").exists()  # and leaves nothing behind


def test_a_folder_that_cannot_be_written_is_named(
    fruits: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    no_runs = "--trainer.default_root_dir=file/runs", "--trainer.logger=false"
    assert re.fullmatch("error: 'file/runs/.*' cannot be used: Not a directory", refused("fit", *no_runs))
    monkeypatch.setenv("PIGMENT_CACHE", "file/cache")
    said = refused("fit", "--data.init_args.size=20")  # not in the cache yet
    assert said == "error: cannot write to the cache folder 'file/cache': Not a directory. " + (
        "Set PIGMENT_CACHE to a different one."
    )


@pytest.mark.usefixtures("first")
def test_fewer_epochs_than_the_checkpoint_has_are_refused(refused: Callable[..., str]) -> None:
    said = refused("fit", "--ckpt_path=last", "--trainer.max_epochs=0")
    assert "trainer.max_epochs is 0, but " in said
    assert "last.ckpt' has had 1; give more" in said


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("WANDB_MODE=ofline", "mode: Input should be 'online', 'offline'"),
        ("WANDB_BASE_URL=localhost:8080", "base_url: URL scheme should be 'http' or 'https'"),
        ("WANDB_INIT_TIMEOUT=soon", "init_timeout: Input should be a valid number"),
    ],
)
def test_a_setting_that_weights_and_biases_refuses_is_named(
    variable: str, said: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    assert f"WANDB_... variable or its settings file: {said}" in refused("fit")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_missed(refused: Callable[..., str]) -> None:
    assert "(trainer.accelerator is gpu, devices auto)" in refused("fit", "--trainer.accelerator=gpu")


class OtherVAE(ConvVAE):
    pass


def test_a_config_that_contradicts_the_checkpoint_is_refused(first: Path, refused: Callable[..., str]) -> None:
    last = f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}"
    for stage in ("fit", "test"):
        said = refused(stage, last, "--model.init_args.lr=0.5")
        assert "lr is 0.001 in 'runs/" in said
        remedy = f"Name another checkpoint, or use its run's own config: --config {first}/config"
        assert f"but 0.5 in the config. {remedy}" in said
    assert "latent_dim is 4" in refused("fit", last, "--model.init_args.latent_dim=8")
    assert "image_size is 16" in refused("fit", last, "--data.init_args.size=32")
    other = f"{OtherVAE.__module__}.{OtherVAE.__name__}"
    settings = ["--model.init_args.latent_dim=4", "--model.init_args.lr=0.001"]
    assert "model is vae.ConvVAE in 'runs/" in refused("fit", last, f"--model={other}", *settings)


def test_other_weights_are_refused(first: Path, refused: Callable[..., str]) -> None:
    path = first / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["decoder.7.weight"] = checkpoint["state_dict"].pop("decoder.6.weight")
    torch.save(checkpoint, path)
    assert "weights are not those of this model" in refused("test", f"--ckpt_path={path}")


def test_a_file_that_is_no_checkpoint_is_refused_without_running_it(
    first: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"hyper_parameters": {}, "payload": Payload()}, tmp_path / "evil.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "evil.ckpt").read_bytes()[:200])
    (tmp_path / "empty.ckpt").touch()
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    whole = (first / "checkpoints" / "last.ckpt").read_bytes()
    middle = len(whole) // 2  # in the weights
    (tmp_path / "flipped.ckpt").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for name in ("evil.ckpt", "half.ckpt", "empty.ckpt", "foreign.ckpt", "tensor.ckpt", "flipped.ckpt"):
        assert "not a whole checkpoint" in refused("test", f"--ckpt_path={tmp_path / name}")
    assert not (tmp_path / "ran").exists()


def test_precision_is_float32_where_bfloat16_is_only_emulated(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny("fit", fruits, "--trainer.max_epochs=1")
    for has, asked, expected in (
        (True, "bf16-mixed", "bf16-mixed"),
        (False, "bf16-mixed", "32-true"),
        (False, "bf16", "32-true"),
        (False, "16-mixed", "32-true"),  # which is bf16-mixed on a CPU
    ):
        monkeypatch.setattr("cli.run.computes_bfloat16", lambda accelerator, has=has: has)
        run = main([*arguments, f"--trainer.precision={asked}"])
        assert run.trainer.precision == expected
        assert yaml.safe_load((run.run_folder / "config.yaml").read_text())["trainer"]["precision"] == expected


def not_logged_in(home: Path) -> dict[str, str]:
    """An environment in which W&B behaves as on a new machine."""
    return {name: value for name, value in os.environ.items() if "WANDB" not in name} | {"HOME": str(home)}


def test_a_run_without_weights_and_biases_leaves_nothing_of_it(
    fruits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("WANDB_SILENT")
    wandb.teardown()  # forgets the mode that it saw first
    main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    said = "".join([*caplog.messages, *capfd.readouterr()])
    assert "Data: " in said
    assert "Pictures  " in said
    assert "W&B" not in said
    assert not list(Path("runs").glob("*/wandb"))


def test_mistakes_that_show_late_get_a_line_too(refused: Callable[..., str]) -> None:
    typo = callback("EarlyStopping", "monitor: val_loss")
    assert "metric `val_loss` which is not available" in refused("fit", typo, "--trainer.max_epochs=1")
    assert "must be less than or equal to the number" in refused("fit", "--trainer.val_check_interval=100")


class CountImages(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.number = int(pl_module.means["train/loss"].num_images)


def test_a_search_for_the_learning_rate_leaves_no_trace_and_is_only_for_the_start(
    fruits: Path, refused: Callable[..., str]
) -> None:
    search = callback("LearningRateFinder", "num_training_steps: 3, max_lr: 0.001")
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1", search, f"--trainer.callbacks+={__name__}.CountImages"))
    (count,) = (one for one in run.trainer.callbacks if isinstance(one, CountImages))
    assert count.number == len(run.datamodule.images("train"))
    rows = metrics(run.run_folder)
    said = "trainer.callbacks: LearningRateFinder is only for the start of a run"
    assert said in refused("fit", search, "--ckpt_path=last")
    assert metrics(run.run_folder) == rows


def test_a_config_can_keep_weights_and_biases_offline(
    fruits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()
    ours = {"class_path": "callbacks.ResumableWandbLogger", "init_args": {"project": "pigment", "mode": "offline"}}
    Path("offline.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [ours]}}))
    run = main([*tiny("fit", fruits, "--trainer.max_epochs=1"), "--config=offline.yaml"])
    assert any("W&B: offline, as its settings say. To upload" in said for said in caplog.messages)
    assert run.trainer.logger.experiment.settings.x_transaction_log_flush_interval == 1


def test_neither_a_server_that_does_not_answer_nor_an_inherited_environment_ends_a_run(
    fruits: Path, tmp_path: Path
) -> None:
    """A CI may turn warnings into errors, a bare terminal may lack Unicode, and a notebook has its own Matplotlib."""
    server = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}  # a closed port
    terminal = {"PYTHONIOENCODING": "ascii", "COLUMNS": "0", "TERM": "dumb"}
    env = not_logged_in(tmp_path) | server | terminal | {"PYTHONWARNINGS": "error", "MPLBACKEND": "inline_elsewhere"}
    arguments = tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.default_root_dir=Früchte")
    command = [sys.executable, train.__file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    (folder,) = Path("Früchte").iterdir()
    assert f"Run       Fr\\xfcchte/{folder.name}" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "W&B: offline" in line]
    assert f"wandb sync 'Fr\\xfcchte/{folder.name}'/wandb/offline-run-*" in line
    assert ".." not in line
    assert "wandb: " not in done.stderr  # only that line
    assert any("val/loss" in record["item"] for record in read_wandb(folder)["history"])


def test_nothing_is_asked_at_a_terminal_when_nobody_is_logged_in(fruits: Path, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        command = [sys.executable, train.__file__, *tiny("fit", fruits, "--trainer.max_epochs=1")]
        run = subprocess.Popen(command, env=not_logged_in(tmp_path), stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        stop = threading.Timer(90, run.kill)  # in case it waits for an answer
        stop.start()
        said = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while seen := screen.read(1000):
                said += seen
        stop.cancel()
    assert run.wait() == 0
    assert b"W&B: offline, nobody is logged in." in said
    assert b"Enter your choice" not in said


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_command_has_the_shared_defaults(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    defaults = yaml.safe_load((CONFIGS / "defaults.yaml").read_text())["trainer"]
    with pytest.raises(SystemExit):
        main([stage, f"--config={CONFIGS / 'vae.yaml'}", "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["precision"] == defaults["precision"]
    (save_last,) = [one for one in trainer["callbacks"] if one["class_path"].endswith("SaveLast")]
    assert save_last["init_args"]["every_n_minutes"] == 10


def test_a_working_directory_that_is_not_text_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad\udcff").mkdir()
    monkeypatch.chdir("bad\udcff")
    assert re.search(r"error: .*bad\\udcff/runs/.*: not valid utf-8, which a config cannot hold", refused("fit"))


def test_a_project_that_weights_and_biases_refuses_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    assert "W&B refuses a setting: Invalid project name 'a/b'" in refused("fit")
