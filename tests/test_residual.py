import math
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LambdaCallback
from torch import nn
from torch.utils.data import DataLoader

from tests.test_vae import fit, make_trainer
from tests.world import CONFIGS
from vae import ResidualVAE

NAMES = ("residual", "calibrated")


def small(image_size: int = 16) -> ResidualVAE:
    return ResidualVAE(image_size, latent_channels=4, lr=2e-3, warmup_steps=0)


@pytest.mark.parametrize(("image_size", "sides"), [(100, [50, 25, 13, 7]), (96, [48, 24, 12, 6]), (17, [9, 5, 3, 2])])
def test_each_level_has_half_the_size_of_the_one_before(image_size: int, sides: list[int]) -> None:
    model = small(image_size)
    shapes: dict[nn.Module, list[int]] = {model.encoder: [], model.decoder: []}
    for network, seen in shapes.items():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.shape[-1]))
    images = torch.rand(2, 3, image_size, image_size)
    assert model.reconstruct(images).shape == images.shape
    assert list(dict.fromkeys(shapes[model.encoder])) == list(dict.fromkeys(sides))
    assert list(dict.fromkeys(shapes[model.decoder])) == list(dict.fromkeys(sides[::-1]))


def test_at_100_px_it_has_490_latents_and_one_in_17_of_the_calibrated_recipes_weights() -> None:
    model = ResidualVAE(image_size=100, latent_channels=10, lr=2e-3, warmup_steps=0)
    assert model.latent_dim == 490
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_448_864


def test_gradients_reach_every_parameter() -> None:
    model = small()
    fit(model, torch.rand(4, 3, 16, 16), steps=1)
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_a_few_steps_learn_to_tell_flat_colors_apart() -> None:
    images = torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16).contiguous()
    model = small()
    fit(model, images, steps=100)
    error = (model.reconstruct(images) - images).square().mean()
    assert error < 0.5 * images.var(dim=0, correction=0).mean()  # the error that the mean color alone would leave


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_stays_finite_when_log_variances_do_not(precision: str) -> None:
    model = small()
    model.encoder[-1].bias.data[4:] = torch.tensor([-1e4, 1e4, 0, 0])
    make_trainer(max_epochs=3, precision=precision).fit(model, DataLoader(torch.rand(200, 3, 16, 16), 4))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    model = ResidualVAE(image_size=16, latent_channels=3, lr=1e-3, warmup_steps=3)
    trainer = make_trainer(max_epochs=4)
    rates: list[float] = []
    trainer.callbacks.append(
        LambdaCallback(on_train_batch_start=lambda *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    )
    trainer.fit(model, DataLoader(torch.rand(4, 3, 16, 16), 2))
    falling = [1e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, *falling[3:]])


def test_it_is_zero_at_the_end_however_many_steps_an_epoch_has() -> None:
    model = ResidualVAE(image_size=16, latent_channels=3, lr=1.0, warmup_steps=0)
    trainer = make_trainer(max_epochs=4)
    rates: list[float] = []
    trainer.callbacks.append(GradientAccumulationScheduler({0: 1, 2: 2}))
    trainer.callbacks.append(
        LambdaCallback(on_train_batch_end=lambda *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    )
    trainer.fit(model, DataLoader(torch.rand(4, 3, 16, 16), 2))
    after = [1, 2, 3, 4, 4, 6, 6, 8]  # batches that have had their step
    assert rates == pytest.approx([(1 + math.cos(math.pi * batches / 8)) / 2 for batches in after])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"latent_channels": 0}, "latent_channels is 0, must be 1 or more"),
        ({"lr": float("nan")}, "lr is nan, must be over 0"),
        ({"image_size": 15}, r"must be 16 or more, got 15"),
        ({"warmup_steps": -1}, "warmup_steps is -1, must be 0 or more"),
    ],
)
def test_numbers_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResidualVAE(**{"image_size": 16, "latent_channels": 2, "lr": 1e-3, "warmup_steps": 0, **settings})


def test_it_trains_as_long_and_with_the_same_callbacks_as_the_calibrated_recipe() -> None:
    residual, calibrated = (yaml.safe_load((CONFIGS / f"vae_{name}.yaml").read_text()) for name in NAMES)
    assert residual["trainer"] == calibrated["trainer"]
