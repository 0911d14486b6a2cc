import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vae import ConvVAE
from vae.elbo import MIN_VARIANCE

# the report's table: output channels and side after each layer, at 100 px
ENCODER = {"conv1": (16, 100), "conv2": (32, 50), "conv3": (64, 50), "conv4": (16, 25)}
DECODER = {"conv5": (64, 50), "conv6": (32, 50), "conv7": (16, 100), "conv8": (3, 100)}

CALIBRATED = {"likelihood": "optimal", "activation": "sigmoid", "lr_schedule": "cosine"}


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
    parts = [*model.encoder.modules(), *model.decoder.modules()]
    names = [type(module).__name__ for module in parts if not list(module.children())]
    block = ["{}", "BatchNorm{}d", "ReLU"]

    def blocks(layer: str, dims: int, number: int) -> list[str]:
        return [name.format(layer if name == "{}" else dims) for name in block] * number

    encoder = [*blocks("Conv2d", 2, 4), "Flatten", *blocks("Linear", 1, 1), "Linear", "Linear"]
    decoder = [*blocks("Linear", 1, 2), "Unflatten", *blocks("ConvTranspose2d", 2, 3), "ConvTranspose2d"]
    assert names == encoder + decoder


@pytest.mark.parametrize(("image_size", "latent_dim"), [(4, 1), (36, 5)])
def test_any_multiple_of_4_and_any_number_of_latents(image_size: int, latent_dim: int) -> None:
    model = ConvVAE(image_size, latent_dim, lr=1e-3)
    images = torch.rand(2, 3, image_size, image_size)
    assert model.encode(images)[0].shape == (2, latent_dim)
    assert model.reconstruct(images).shape == images.shape


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"init_args.likelihood is 'optimum', must be fixed or optimal\."):
        ConvVAE(image_size=8, latent_dim=2, lr=1e-3, likelihood="optimum")
    with pytest.raises(ValueError, match=r"sampler is 'mixtur', must be prior or gaussian or mixture\."):
        ConvVAE(image_size=8, latent_dim=2, lr=1e-3).sample(1, seed=0, sampler="mixtur")


def test_every_size_can_be_tested() -> None:
    images = torch.rand(5, 3, 4, 4)
    (metrics,) = make_trainer().test(ConvVAE(4, latent_dim=2, lr=1e-3), DataLoader(images, 4), verbose=False)
    assert 0 < metrics["test/psnr"] < 58.9
    assert -1 <= metrics["test/ssim"] <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"latent_dim": 0, "lr": 1e-3},
        {"latent_dim": 2, "lr": float("nan")},
    ],
)
def test_numbers_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"latent_dim is \d, must be 1 or more; lr is \S+, must be over 0"):
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
    assert error < 0.5 * images.var(dim=0, correction=0).mean()  # the error that the mean color alone would leave


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("settings", "epochs"), [({}, 1), (CALIBRATED, 5)], ids=["report", "calibrated"])
def test_training_stays_finite_when_log_variances_do_not(precision: str, settings: dict[str, Any], epochs: int) -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, **settings)
    model.encoder.log_variance.bias.data = torch.tensor([-1e4, 1e4, 0])
    trainer = make_trainer(max_epochs=epochs, precision=precision)
    trainer.fit(model, DataLoader(torch.rand(400, 3, 8, 8), 4))
    assert trainer.global_step == 100 * epochs
    assert all(metric.isfinite() and metric.dtype == torch.float32 for metric in trainer.callback_metrics.values())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_terms_are_per_image_means_and_add_up() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    images = torch.rand(5, 3, 8, 8)  # batches of 4 and 1, which must not count equally
    trainer = make_trainer()
    (metrics,) = trainer.validate(model, DataLoader(images, 4), verbose=False)
    mean, log_variance = model.eval().encode(images)
    error = (model.decoder(mean) - images).square().sum(dim=(1, 2, 3)).mean().item()
    kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1).mean().item()
    nats = error + kl + 96 * math.log(math.pi * 255**2)  # with the constant of 192 Gaussians of variance 1/2
    expected = {
        "val/loss": error + kl,
        "val/reconstruction": error,
        "val/kl": kl,
        "val/kl_per_latent": kl / 3,
        "val/sigma": 255 * math.sqrt(0.5),
        "val/bits_per_dim": nats / 192 / math.log(2),
    }
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_the_optimal_variance_is_the_mean_squared_error_of_the_step() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, likelihood="optimal")
    metrics = fit(model, torch.rand(4, 3, 8, 8), steps=1).callback_metrics
    variance = (metrics["train/sigma"].item() / 255) ** 2
    likeliest = 96 * (1 + math.log(2 * math.pi * 255**2 * variance))  # where the error is 192 times the variance
    assert metrics["train/reconstruction"].item() == pytest.approx(likeliest, rel=1e-5)
    assert metrics["train/loss"].item() == pytest.approx(likeliest + metrics["train/kl"].item(), rel=1e-5)
    assert metrics["train/bits_per_dim"].item() == pytest.approx(metrics["train/loss"].item() / 192 / math.log(2))
    assert model.variance.item() == pytest.approx(variance)


def test_the_running_variance_is_a_mean_that_forgets() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, likelihood="optimal")
    variances, running = [], []

    def record(trainer: Trainer, model: LightningModule) -> None:
        variances.append((trainer.callback_metrics["train/sigma"].item() / 255) ** 2)
        running.append(model.variance.item())

    trainer = make_trainer(max_steps=12, max_epochs=-1, callbacks=LambdaCallback(on_train_epoch_end=record))
    trainer.fit(model, DataLoader(torch.rand(4, 3, 8, 8), 4))
    assert running[:10] == pytest.approx([sum(variances[: n + 1]) / (n + 1) for n in range(10)], rel=1e-4)
    assert running[11] == pytest.approx(0.9 * running[10] + 0.1 * variances[11], rel=1e-4)


def test_evaluation_takes_the_variance_of_training_and_leaves_it() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, likelihood="optimal")
    trainer = fit(model, torch.rand(4, 3, 8, 8), steps=3)
    variance = model.variance.item()
    (metrics,) = trainer.validate(model, DataLoader(torch.zeros(4, 3, 8, 8), 4), verbose=False)
    error = (model.eval().decoder(model.encode(torch.zeros(4, 3, 8, 8))[0])).square().sum().item() / 4
    nll = error / (2 * variance) + 96 * math.log(2 * math.pi * 255**2 * variance)
    assert metrics["val/reconstruction"] == pytest.approx(nll, rel=1e-4)
    assert model.variance.item() == variance


def test_flat_images_that_are_learned_by_heart_have_a_loss() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, likelihood="optimal")
    nn.init.zeros_(model.decoder[-1].weight)
    metrics = fit(model, torch.zeros(4, 3, 8, 8), steps=1).callback_metrics
    assert metrics["train/reconstruction"].item() == pytest.approx(0, abs=1e-3)
    assert model.variance.item() == pytest.approx(MIN_VARIANCE)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_loss_is_the_reconstruction_plus_the_kl_divergence() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    metrics = fit(model, torch.rand(4, 3, 8, 8), steps=2).callback_metrics
    loss, *terms = (metrics[f"train/{name}"].item() for name in ("loss", "reconstruction", "kl"))
    assert loss == pytest.approx(sum(terms))


def test_a_cosine_takes_the_learning_rate_to_zero() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, lr_schedule="cosine")
    trainer = make_trainer(max_epochs=2)
    rates = []
    trainer.callbacks.append(
        LambdaCallback(on_train_batch_start=lambda *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    )
    trainer.fit(model, DataLoader(torch.rand(4, 3, 8, 8), 2))
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_a_sigmoid_keeps_reconstructions_within_0_and_1_in_float32() -> None:
    decoder = ConvVAE(image_size=8, latent_dim=3, lr=1e-3, activation="sigmoid").decoder
    nn.init.normal_(decoder[-1].weight, std=5)
    with torch.autocast("cpu", torch.bfloat16):
        images = decoder(torch.randn(64, 3))
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.1
    assert 0.9 < images.max() <= 1


def test_a_batch_of_one_can_be_evaluated() -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    (metrics,) = make_trainer().validate(model, DataLoader(torch.rand(1, 3, 8, 8)), verbose=False)
    assert math.isfinite(metrics["val/loss"])


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


def test_an_older_checkpoint_is_one_of_the_reports_recipe(tmp_path: Path) -> None:
    model = ConvVAE(image_size=8, latent_dim=3, lr=1e-3)
    fit(model, torch.rand(4, 3, 8, 8), steps=1).save_checkpoint(tmp_path / "vae.ckpt")
    checkpoint = torch.load(tmp_path / "vae.ckpt", weights_only=True)
    del checkpoint["state_dict"]["variance"], checkpoint["codes"]
    checkpoint["hyper_parameters"] = {
        name: checkpoint["hyper_parameters"][name] for name in ("image_size", "latent_dim", "lr")
    }
    torch.save(checkpoint, tmp_path / "old.ckpt")
    loaded = ConvVAE.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert torch.equal(loaded.sample(4, seed=0), model.sample(4, seed=0))
    assert (loaded.likelihood, loaded.variance.item()) == ("fixed", 0.5)


def make_trainer(**settings: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **settings)


def fit(model: ConvVAE, images: Tensor, steps: int) -> Trainer:
    trainer = make_trainer(max_steps=steps, max_epochs=-1)
    trainer.fit(model, DataLoader(images, len(images)))
    return trainer
