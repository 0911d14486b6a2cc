from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vae import ConvVAE

# the report's table: output channels and side after each layer, at 100 px
ENCODER = {"conv1": (16, 100), "conv2": (32, 50), "conv3": (64, 50), "conv4": (16, 25)}
DECODER = {"conv5": (64, 50), "conv6": (32, 50), "conv7": (16, 100), "conv8": (3, 100)}


def test_layers_are_the_reports() -> None:
    model = ConvVAE(image_size=100, latent_dim=2048, lr=1e-3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 53_655_152

    shapes: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    model.decode(model.encode(torch.rand(2, 3, 100, 100))[0])
    conv_shapes = [(channels, side, side) for channels, side in (*ENCODER.values(), *DECODER.values())]
    fc1, fc21, fc22, fc3, fc4 = (2048,), (2048,), (2048,), (2048,), (10_000,)
    assert shapes == [*conv_shapes[:4], fc1, fc21, fc22, fc3, fc4, *conv_shapes[4:]]


def test_batch_norm_and_relu_follow_every_layer_but_the_heads_and_the_last() -> None:
    model = ConvVAE(image_size=8, latent_dim=2, lr=1e-3)
    names = [type(module).__name__ for module in model.modules() if not list(module.children())]
    block = ["{}", "BatchNorm{}d", "ReLU"]

    def blocks(layer: str, dims: int, number: int) -> list[str]:
        return [name.format(layer if name == "{}" else dims) for name in block] * number

    encoder = [*blocks("Conv2d", 2, 4), "Flatten", *blocks("Linear", 1, 1), "Linear", "Linear"]
    decoder = [*blocks("Linear", 1, 2), "Unflatten", *blocks("ConvTranspose2d", 2, 3), "ConvTranspose2d"]
    assert names[: len(encoder) + len(decoder)] == encoder + decoder


@pytest.mark.parametrize(("image_size", "latent_dim"), [(4, 1), (36, 5)])
def test_any_multiple_of_4_and_any_number_of_latents(image_size: int, latent_dim: int) -> None:
    model = ConvVAE(image_size, latent_dim, lr=1e-3)
    images = torch.rand(2, 3, image_size, image_size)
    assert model.encode(images)[0].shape == (2, latent_dim)
    assert model.reconstruct(images).shape == images.shape


def test_every_size_can_be_tested() -> None:
    images = torch.rand(5, 3, 4, 4)
    (metrics,) = make_trainer().test(ConvVAE(4, latent_dim=2, lr=1e-3), DataLoader(images, 4), verbose=False)
    assert metrics.keys() == {"test/loss", "test/reconstruction", "test/kl", "test/psnr"}  # SSIM needs 11 pixels


@pytest.mark.parametrize("settings", [{"latent_dim": 0, "lr": 1e-3}, {"latent_dim": 2, "lr": float("nan")}])
def test_numbers_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"latent_dim is \d, needs 1 or more; lr is \S+, needs over 0"):
        ConvVAE(image_size=8, **settings)


@pytest.mark.parametrize("image_size", [0, 50, 101])
def test_other_sizes_are_refused_before_anything_is_built(image_size: int) -> None:
    with pytest.raises(ValueError, match=rf"multiple of 4, got {image_size}\. Set data.init_args.size to \d+"):
        ConvVAE(image_size, latent_dim=2, lr=1e-3)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 8 px images, got \(2, 3, 16, 16\)"):
        ConvVAE(8, latent_dim=2, lr=1e-3).encode(torch.rand(2, 3, 16, 16))


def test_gradients_reach_every_parameter() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    fit(model, torch.rand(4, 3, 8, 8), steps=1)
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_a_few_steps_learn_to_tell_flat_colors_apart() -> None:
    colors = torch.rand(8, 3, 1, 1)
    images = colors.expand(8, 3, 16, 16).contiguous()
    model = ConvVAE(image_size=16, latent_dim=4, lr=1e-3)
    fit(model, images, steps=100)
    error = (model.reconstruct(images) - images).square().mean()
    assert error < 0.5 * images.var(dim=0, correction=0).mean()  # which the mean color alone would leave


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("log_variance", [-1e4, 1e4])
def test_training_stays_finite_when_the_log_variance_does_not(precision: str, log_variance: float) -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    nn.init.constant_(model.encoder.log_variance.bias, log_variance)
    trainer = fit(model, torch.rand(4, 3, 8, 8), steps=2, precision=precision)
    assert all(metric.isfinite() and metric.dtype == torch.float32 for metric in trainer.callback_metrics.values())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_terms_are_per_image_means_and_add_up() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    images = torch.rand(5, 3, 8, 8)  # batches of 4 and 1, which must not count alike
    trainer = make_trainer()
    (metrics,) = trainer.validate(model, DataLoader(images, 4), verbose=False)
    mean, log_variance = model.eval().encode(images)
    error = (model.decoder(mean) - images).square().sum(dim=(1, 2, 3)).mean().item()
    kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1).mean().item()
    expected = {"val/loss": error + kl, "val/reconstruction": error, "val/kl": kl}
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_images_leave_the_model_within_0_and_1() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    nn.init.normal_(model.decoder[-1].weight, std=100)
    for images in (model.reconstruct(torch.rand(4, 3, 8, 8)), model.sample(4, seed=0)):
        assert images.shape == (4, 3, 8, 8)
        assert (images.min(), images.max()) == (0, 1)


def test_sampling_depends_on_its_seed_alone_and_leaves_no_trace() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = model.sample(4, seed=1), model.sample(4, seed=1), model.sample(4, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_and_the_class_are_enough(tmp_path: Path) -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    trainer = fit(model, torch.rand(4, 3, 8, 8), steps=1)
    trainer.save_checkpoint(tmp_path / "vae.ckpt")
    loaded = ConvVAE.load_from_checkpoint(tmp_path / "vae.ckpt", weights_only=True)
    assert torch.equal(loaded.sample(4, seed=0), model.sample(4, seed=0))


def make_trainer(**settings: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **settings)


def fit(model: ConvVAE, images: Tensor, steps: int, precision: str = "32-true") -> Trainer:
    trainer = make_trainer(max_steps=steps, max_epochs=-1, precision=precision)
    trainer.fit(model, DataLoader(images, len(images)))
    return trainer
