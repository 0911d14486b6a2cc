import csv
from pathlib import Path

import pytest
import yaml

from tests.world import CONFIGS, tiny
from train import main
from vae import ConvVAE

RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "defaults.yaml")


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_trains(config: Path, fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=3", config=config))
    with (run.run_folder / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for name in ("train/loss", "val/loss"):
        first, *_, last = (float(row[name]) for row in rows if row[name])
        assert last < first


def test_the_vae_config_is_the_reports() -> None:
    config = yaml.safe_load((CONFIGS / "vae.yaml").read_text())
    assert config["model"] == {"class_path": "vae.ConvVAE", "init_args": {"latent_dim": 2048, "lr": 0.001}}
    assert config["data"]["init_args"] == {"root": None, "size": 100, "batch_size": 64, "num_workers": 0, "seed": 0}
    assert config["trainer"]["max_epochs"] == 5


def test_the_vae_learns_by_adam_at_a_constant_rate(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    assert isinstance(run.model, ConvVAE)
    (optimizer,) = run.trainer.optimizers
    assert type(optimizer).__name__ == "Adam"
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.001, (0.9, 0.999))
    assert run.trainer.lr_scheduler_configs == []
