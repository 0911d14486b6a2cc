"""The benchmark computes what training computes, and prints what it measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import ours
from benchmarks.__main__ import STORES, table
from benchmarks.systems import LATENT_DIM, SYSTEMS, VAE, make
from tests.world import CONFIGS, tiny
from train import main


class FirstStep(Callback):
    """Keeps what the first step started from, and its loss."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
            self.batch, self.random_state = batch.clone(), torch.get_rng_state()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            self.loss = outputs["loss"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_bare_step_computes_the_loss_of_training(name: str, fruits: Path) -> None:
    recorded = f"--trainer.callbacks+={__name__}.FirstStep"
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1", recorded, config=CONFIGS / SYSTEMS[name].config))
    (first,) = (callback for callback in run.trainer.callbacks if isinstance(callback, FirstStep))
    net = VAE(run.model.image_size, run.model.latent_dim) if name == "VAE" else make(name)
    net.load_state_dict({key: first.weights[key] for key in net.state_dict()})
    torch.set_rng_state(first.random_state)
    assert net.loss(first.batch).item() == pytest.approx(first.loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_bare_step_has_the_settings_of_training(name: str) -> None:
    system = SYSTEMS[name]
    config = yaml.safe_load((CONFIGS / system.config).read_text())
    data, model = (config[part]["init_args"] for part in ("data", "model"))
    assert (data["size"], data["batch_size"]) == (system.size, system.batch_size)
    assert model.get("latent_dim", LATENT_DIM) == LATENT_DIM


def test_figures_of_training_are_said(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours.main("VAE", *tiny("fit", fruits)[2:], "--data.init_args.batch_size=2", "--trainer.max_epochs=1")
    figures = json.loads(next(line for line in capfd.readouterr().out.splitlines() if line.startswith('{"')))
    assert figures.keys() == {"images_per_second", "first_step_s", "epoch_end_s", "peak_mb"}
    assert min(figures.values()) > 0


def test_the_table_has_medians_and_their_ratios() -> None:
    speeds = {"bare": [100, 90, 300], "ours": [95, 80, 110], "notebook": [20, 19, 21]}
    speeds |= {"1 process": [50, 50, 50], "2 processes": [80, 80, 80]}
    results = {
        f"{name} {way}": [{"images_per_second": value} for value in values]
        for name in SYSTEMS
        for way, values in speeds.items()
    }
    results |= {
        f"{name}, {what}": [{"images_per_second": value}]
        for name in STORES
        for what, value in (("decoded in threads", 100), ("decoded in processes", 200), ("store built", 150))
    }
    said = table({"processor": "a fast one"}, results)
    assert "processor: a fast one" in said
    assert "A bare                              images_per_second 100 (90 to 300)" in said
    for name in SYSTEMS:
        assert f"{name:5} ours / bare 0.95   ours / notebook 4.75   2 processes / 2 x 1 0.80" in said
    for name in STORES:
        assert f"{name}: store built / decoded in threads 1.50, in processes 0.75" in said
