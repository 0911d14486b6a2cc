from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import resnet18

from colorization import Colorizer, DeepColorizer, PaletteColorizer, ResNetColorizer, ShallowColorizer
from colorization.color import rgb_to_lab
from colorization.metrics import ciede2000
from datamodules import PaintingsDataModule
from images.colorfulness import colorfulness
from images.reading import as_images
from resuming.loggers import read_metrics
from tests.world import CONFIGS, metrics, tiny
from train import main

CONFIG = CONFIGS / "colorization" / "4_shallow_adam.yaml"
RESNET = CONFIGS / "colorization" / "7_resnet_adam.yaml"
KINDS = {
    "shallow": lambda **recipe: ShallowColorizer(**RECIPE | recipe),
    "deep": lambda **recipe: DeepColorizer(**RECIPE | recipe),
    "resnet": lambda **recipe: ResNetColorizer(weights=None, **RECIPE | recipe),
    "palette": lambda: PaletteColorizer(**SCRATCH),
}
RECIPE: dict[str, Any] = {"optimizer": "adam", "lr": 0.001, "loss": "mse"}
SCRATCH: dict[str, Any] = {
    "lr": 0.001,
    "weight_decay": 0.05,
    "warmup_steps": 1,
    "backbone": None,
    "weights": None,
    "freeze_encoder": False,
}


def make_trainer(max_steps: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(model: Colorizer, images: Tensor, max_steps: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    trainer = make_trainer(max_steps, callbacks)
    trainer.fit(model, DataLoader(images, batch_size=len(images)))
    return trainer


def skies_and_fields(num_images: int, size: int) -> Tensor:
    """Flat colors, some of them light and blue, the others dark and green: (B, 3, size, size)."""
    blue, green = torch.tensor([[0.55, 0.7, 0.95], [0.15, 0.35, 0.1]]).view(2, 3, 1, 1)
    is_sky = torch.arange(num_images).view(-1, 1, 1, 1) % 2
    return (green + is_sky * (blue - green)).expand(-1, -1, size, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (17, 23), (8, 100)])
def test_any_size_is_colorized(kind: str, size: tuple[int, int]) -> None:
    model = KINDS[kind]()
    lightness = torch.rand(2, 1, *size)
    assert model(lightness).shape == (2, 2, *size)
    assert model.colorize(lightness.expand(-1, 3, -1, -1)).shape == (2, 3, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_colorizing_keeps_lightness_adds_color_and_changes_nothing_of_the_model(kind: str) -> None:
    model = KINDS[kind]()
    images, before = torch.rand(4, 3, 32, 32), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    colorized = model.colorize(images)
    assert (rgb_to_lab(colorized)[:, 0] - rgb_to_lab(images)[:, 0]).abs().max() < 0.5
    assert rgb_to_lab(colorized)[:, 1:].std() > 0
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    one_by_one = torch.cat([model.colorize(image[None]) for image in images])
    assert torch.allclose(one_by_one, colorized, atol=1e-5)


def test_split_and_join_are_inverse_and_in_the_units_of_the_network() -> None:
    model, images = KINDS["shallow"](), torch.rand(4, 3, 16, 16)
    lightness, chroma = model.split(images)
    lab = rgb_to_lab(images)
    assert torch.equal(lightness, lab[:, :1] / 100)
    assert torch.equal(chroma, lab[:, 1:] / 128)
    assert torch.allclose(model.join(lightness, chroma), images, atol=0.5 / 255)


@pytest.mark.parametrize(
    ("kind", "loss", "max_steps"),
    [("shallow", "mse", 40), ("shallow", "mae", 40), ("deep", "mse", 100), ("resnet", "mse", 20)],
)
def test_color_that_follows_lightness_is_learned(kind: str, loss: str, max_steps: int) -> None:
    model, images = KINDS[kind](loss=loss), skies_and_fields(4, size=8)
    _, chroma = model.split(images)
    fit(model, images, max_steps)
    error = (model.split(model.colorize(images))[1] - chroma).abs().mean()
    best_constant = (chroma - chroma.mean(dim=(0, 2, 3), keepdim=True)).abs().mean()
    assert error < 0.7 * best_constant


def test_the_loss_is_the_chosen_error_and_both_are_logged(paintings: Path) -> None:
    for loss in ("mse", "mae"):
        trainer = main(tiny("fit", paintings, f"--model.init_args.loss={loss}", config=CONFIG)).trainer
        logged = trainer.callback_metrics
        for stage in ("train", "val"):
            assert logged[f"{stage}/loss"] == logged[f"{stage}/{loss}"]
            assert logged[f"{stage}/mse"] < logged[f"{stage}/mae"]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("rmsprop", {"lr": 0.004, "alpha": 0.9, "eps": 1e-7, "momentum": 0}),
        ("adam", {"lr": 0.004, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}),
        ("sgd", {"lr": 0.004, "momentum": 0}),
    ],
)
def test_the_optimizer_has_the_given_rate(optimizer: str, expected: dict[str, Any]) -> None:
    colorizer = KINDS["shallow"](optimizer=optimizer, lr=0.004)
    colorizer.trainer = Trainer(logger=False)
    made = colorizer.configure_optimizers()
    assert type(made).__name__.lower() == optimizer
    assert {name: made.defaults[name] for name in expected} == expected


@pytest.mark.parametrize("setting", [{"optimizer": "adamw"}, {"loss": "l2"}])
def test_a_name_that_is_unknown_is_refused_at_once(setting: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"init_args\.(optimizer is 'adamw', must|loss is 'l2', must be mse)"):
        ShallowColorizer(**{"optimizer": "adam", "lr": 0.001, "loss": "mse", **setting})


def test_the_loss_of_a_step_is_that_of_its_batch_however_many_are_accumulated(paintings: Path) -> None:
    still = ["--model.init_args.optimizer=sgd", "--model.init_args.lr=1e-30", "--trainer.max_epochs=1"]
    logged = [
        [
            float(row["train/loss_step"])
            for row in read_metrics(
                main(tiny("fit", paintings, *still, *more, config=CONFIG)).run_folder / "metrics.csv"
            )
            if "train/loss_step" in row
        ]
        for more in ([], ["--trainer.accumulate_grad_batches=2"])
    ]
    each, every_second = logged
    assert len(set(each)) == 4
    assert every_second == pytest.approx(each[1::2])


def test_a_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="lr is 0, must be over 0"):
        KINDS["shallow"](lr=0)


def test_validation_logs_all_metrics_in_float32_whatever_the_precision(paintings: Path) -> None:
    run = main(tiny("fit", paintings, "--trainer.precision=bf16-mixed", config=CONFIG))
    images = torch.stack(list(run.datamodule.val_dataloader().dataset)) / 255
    with torch.autocast("cpu", torch.bfloat16):
        colorized = run.model.colorize(images)
    lab, true_lab = rgb_to_lab(colorized), rgb_to_lab(images)
    expected = {
        "psnr": -10 * (colorized - images).square().mean(dim=(1, 2, 3)).log10().mean(),
        "ssim": structural_similarity_index_measure(colorized, images, data_range=1.0),
        "ciede2000": ciede2000(lab, true_lab).mean(),
        "colorfulness_difference": (colorfulness(colorized) - colorfulness(images)).mean(),
    }
    *_, logged = (row for row in metrics(run.run_folder) if row["val/loss"])
    assert {name: float(logged[f"val/{name}"]) for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-3
    )


def test_every_table_has_both_baselines(paintings: Path) -> None:
    run = main(tiny("fit", paintings, "--data.init_args.flip=true", config=CONFIG))
    train, val = (
        as_images(run.datamodule.store.pixels[run.datamodule.store.rows[part]]) / 255 for part in ("train", "val")
    )
    (_, train_chroma), (lightness, chroma) = run.model.split(train), run.model.split(val)
    baselines = {
        "gray": torch.zeros_like(chroma),
        "mean_ab": train_chroma.mean(dim=(0, 2, 3)).view(2, 1, 1).expand_as(chroma),
    }
    for stage in ("validate", "test"):
        again = main(tiny(stage, paintings, "--ckpt_path=last", config=CONFIG)).trainer.callback_metrics
        stage = stage.removesuffix("idate")
        for name, baseline in baselines.items():
            image = run.model.join(lightness, baseline)
            expected = {
                "mse": (baseline - chroma).square().mean(),
                "mae": (baseline - chroma).abs().mean(),
                "ciede2000": ciede2000(rgb_to_lab(image), rgb_to_lab(val)).mean(),
                "psnr": -10 * (image - val).square().mean(dim=(1, 2, 3)).log10().mean(),
            }
            got = {metric: again[f"{stage}/{name}_{metric}"].item() for metric in expected}
            assert got == pytest.approx({metric: value.item() for metric, value in expected.items()}, rel=1e-3)
        assert again[f"{stage}/mse"] != again[f"{stage}/mean_ab_mse"]
        if stage == "val":
            validated = {
                name: value.item() for name, value in again.items() if name.startswith(("val/gray_", "val/mean_ab_"))
            }
    first, second = (row for row in metrics(run.run_folder) if row["val/loss"])
    assert {name for name in first if name.startswith(("val/gray_", "val/mean_ab_"))} == validated.keys()
    for name, value in validated.items():
        assert first[name] == second[name]  # a fit measures them once, for a line in its charts
        assert float(first[name]) == pytest.approx(value, rel=0.02, abs=0.1)  # the mean color is that of one epoch


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_needs_only_its_class(kind: str) -> None:
    model, images = KINDS[kind](), skies_and_fields(4, size=16)
    model.lab_scale[0] = 50  # as if LAB_SCALE had been different when it was trained
    fit(model, images, max_steps=2).save_checkpoint("some.ckpt")
    loaded = type(model).load_from_checkpoint("some.ckpt", weights_only=True)
    assert torch.equal(loaded.colorize(images), model.colorize(images))
    assert loaded.lab_scale.flatten().tolist() == [50, 128, 128]
    assert loaded.hparams.items() >= (SCRATCH if kind == "palette" else RECIPE).items()


def test_pretrained_weights_are_where_a_fit_begins_and_needed_for_nothing_else(
    paintings: Path, no_network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = "--model.init_args.weights=IMAGENET1K_V1"
    with pytest.raises(SystemExit) as stop:
        main(tiny("fit", paintings, pretrained, "--trainer.logger=false", config=RESNET))
    assert stop.value.code == 2
    assert "error: the pre-trained weights could not be downloaded" in capsys.readouterr().err

    resnet = resnet18()
    torch.save(resnet.state_dict(), no_network / "resnet18-f37072fd.pth")
    begun = main(tiny("fit", paintings, pretrained, "--model.init_args.lr=1e-9", config=RESNET)).model
    assert torch.allclose(begun.net.encoder[4][0].conv1.weight, resnet.layer4[0].conv1.weight, atol=1e-6)

    (no_network / "resnet18-f37072fd.pth").unlink()
    same = ("--ckpt_path=last", pretrained, "--model.init_args.lr=1e-9")
    for stage, more in {"test": [], "predict": [], "fit": ["--trainer.max_epochs=3"]}.items():
        model = main(tiny(stage, paintings, *same, *more, config=RESNET)).model
        assert torch.allclose(model.net.encoder[4][0].conv1.weight, begun.net.encoder[4][0].conv1.weight, atol=1e-6)


def test_two_processes_agree_on_the_mean_color(paintings: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.max_epochs=1", "--data.init_args.flip=true"]
    model = main(tiny("fit", paintings, *two, config=CONFIG)).model
    (data := PaintingsDataModule(str(paintings), size=16, batch_size=4)).setup("fit")
    images = as_images(data.store.pixels[data.store.rows["train"]]) / 255
    assert model.num_trained == len(images) == 14
    assert torch.allclose(model.mean_chroma, model.split(images)[1].mean(dim=(0, 2, 3)).view(2, 1, 1), atol=1e-5)


def test_a_first_batch_without_color_spoils_no_metric() -> None:
    """For black images, gray is right by every measure."""
    images = torch.cat([torch.zeros(4, 3, 16, 16), skies_and_fields(4, size=16)])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    tables = [
        trainer.validate(KINDS["shallow"](), DataLoader(ordered, batch_size=4), verbose=False)[0]
        for ordered in (images, images.flip(0))
    ]
    names = [name for name in tables[0] if "gray" in name]
    assert {name: tables[0][name] for name in names} == pytest.approx({name: tables[1][name] for name in names})
    assert 30 < tables[0]["val/gray_psnr"] < 50  # half the images are exact copies, which count as 58.9


def test_a_size_that_is_no_multiple_of_the_networks_stride_trains(paintings: Path) -> None:
    data = PaintingsDataModule(str(paintings), size=24, batch_size=4)
    data.setup("fit")
    model = KINDS["resnet"]()
    lightness, chroma = model.split(torch.stack(list(data.val_dataloader().dataset)) / 255)
    before = (model.eval()(lightness) - chroma).square().mean()
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False)
    trainer.fit(model.train(), data)
    assert trainer.callback_metrics["val/loss"] < before
