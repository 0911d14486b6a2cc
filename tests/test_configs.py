from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import FruitsDataModule, PaintingsDataModule
from tests.world import CONFIGS, metrics, tiny, write_ball
from train import main
from vae import ConvVAE

RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name not in ("defaults.yaml", "sweep.yaml"))

# The report's nine models: network, loss, optimizer, learning rate, epochs.
REPORT: dict[str, tuple[str, str, str, float, int]] = {
    "1_shallow_rmsprop": ("Shallow", "mse", "rmsprop", 0.001, 200),
    "2_deep_rmsprop": ("Deep", "mse", "rmsprop", 0.001, 100),
    "3_shallow_rmsprop_lr4e-3": ("Shallow", "mse", "rmsprop", 0.004, 200),
    "4_shallow_adam": ("Shallow", "mse", "adam", 0.001, 200),
    "5_shallow_sgd": ("Shallow", "mse", "sgd", 0.001, 200),
    "6_deep_adam": ("Deep", "mse", "adam", 0.001, 100),
    "7_resnet_adam": ("ResNet", "mse", "adam", 0.001, 106),
    "8_shallow_adam_mae": ("Shallow", "mae", "adam", 0.001, 200),
    "9_deep_adam_mae": ("Deep", "mae", "adam", 0.001, 100),
}


def read(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text())


def losses(run_folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in metrics(run_folder) if row[name]]


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_trains(config: Path, fruits: Path, paintings: Path) -> None:
    root = paintings if config.parent.name == "colorization" else fruits
    num_epochs = 6 if "rmsprop" in config.name else 3  # RMSprop's first steps are long
    run = main(tiny("fit", root, f"--trainer.max_epochs={num_epochs}", config=config))
    for name in ("train/loss", "val/loss"):
        first, *_, last = losses(run.run_folder, name)
        assert last < first
    assert len(list((run.run_folder / "media").glob("*.png"))) > 1  # curves, and at least one film strip


@pytest.mark.parametrize("name", ["vae.yaml", "vae_calibrated.yaml", "vae_residual.yaml"])
def test_a_vae_learns_one_kind_of_gray_image(name: str, tmp_path: Path) -> None:
    for part, number in {"Training": 6, "Test": 3}.items():
        for index in range(number):
            write_ball(
                tmp_path / "gray" / part / "Stone" / f"{index}_100.jpg",
                3 + 0.6 * index + 0.3 * (part == "Test"),
                (120, 120, 120),
            )
    run = main(tiny("fit", tmp_path / "gray", "--trainer.max_epochs=6", config=CONFIGS / name))
    first, *_, last = losses(run.run_folder, "val/loss")
    assert last < first


def test_there_are_the_reports_colorizers_and_one_of_ours() -> None:
    assert {path.stem for path in (CONFIGS / "colorization").iterdir()} == {*REPORT, "10_palette"}


@pytest.mark.parametrize("name", REPORT)
def test_a_colorizer_is_the_reports(name: str) -> None:
    config = read(CONFIGS / "colorization" / f"{name}.yaml")
    net, loss, optimizer, lr, epochs = REPORT[name]
    assert config["model"]["class_path"] == f"colorization.{net}Colorizer"
    weights = {"weights": "IMAGENET1K_V1"} if net == "ResNet" else {}
    assert config["model"]["init_args"] == {"optimizer": optimizer, "lr": lr, "loss": loss, **weights}
    assert config["trainer"]["max_epochs"] == epochs


@pytest.mark.parametrize("name", REPORT)
def test_colorizers_differ_in_nothing_else(name: str) -> None:
    config, baseline = (read(CONFIGS / "colorization" / f"{stem}.yaml") for stem in (name, "1_shallow_rmsprop"))
    assert config["data"] == baseline["data"]
    assert config["trainer"] | {"max_epochs": 200} == baseline["trainer"]
    assert config["data"]["init_args"] == {"size": 256, "batch_size": 10, "flip": True}
    assert len((CONFIGS / "colorization" / f"{name}.yaml").read_text().splitlines()) <= 12


def test_the_vae_config_is_the_reports() -> None:
    config = read(CONFIGS / "vae.yaml")
    assert config["model"]["class_path"] == "vae.ConvVAE"
    vae = ConvVAE(image_size=100, **config["model"]["init_args"])
    assert vae.hparams == {
        "image_size": 100,
        "latent_dim": 2048,
        "lr": 0.001,
        "lr_schedule": "constant",
        "likelihood": "fixed",
        "activation": "none",
    }
    data = FruitsDataModule(**config["data"]["init_args"])
    assert (data.root, data.size, data.batch_size, data.num_workers, data.seed) == (None, 100, 64, 0, 0)
    assert (data.flip, data.list_files) == (False, False)
    assert config["trainer"]["max_epochs"] == 5


def test_the_vae_learns_by_adam_at_a_constant_rate(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    assert isinstance(run.model, ConvVAE)
    (optimizer,) = run.trainer.optimizers
    assert type(optimizer).__name__ == "Adam"
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.001, (0.9, 0.999))
    assert run.trainer.lr_scheduler_configs == []


def test_the_vae_trains_on_paintings_and_a_colorizer_on_fruits(tmp_path: Path, fruits: Path, paintings: Path) -> None:
    """By a different data section alone."""
    colorizer = CONFIGS / "colorization" / "4_shallow_adam.yaml"
    for config, data, root in ((CONFIGS / "vae.yaml", colorizer, paintings), (colorizer, CONFIGS / "vae.yaml", fruits)):
        swapped = tmp_path / config.name
        swapped.write_text(yaml.safe_dump(read(config) | {"data": read(data)["data"]}))
        run = main(tiny("fit", root, config=swapped))
        assert isinstance(run.datamodule, PaintingsDataModule) == (root is paintings)
        first, last = losses(run.run_folder, "val/loss")
        assert last < first
