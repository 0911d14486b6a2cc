from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from callbacks import StopWhenNotFinite
from callbacks.not_finite import skip_if
from datamodules import FruitsDataModule
from images.reading import as_images
from tests.test_progress import SkipsSteps
from tests.world import CONFIGS, tiny
from train import main
from vae import ConvVAE

COLORIZER = CONFIGS / "colorization" / "4_shallow_adam.yaml"


PLUGIN = "lightning.pytorch.plugins.MixedPrecision"


class Spoil(Callback):
    """Spoil an image or a gradient in a step; 6 is the third of four batches in the second epoch."""

    def __init__(self, what: str, rank: int = 0, step: int = 6) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if self.what == "image" and trainer.global_step == self.step and trainer.global_rank == self.rank:
            batch[0] = torch.inf

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.what == "gradient" and trainer.global_step == self.step:
            pl_module.get_parameter("decoder.6.weight").grad[0] = torch.nan


def stopped(capfd: pytest.CaptureFixture[str], spoil: str, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, f"--trainer.callbacks+={{class_path: {__name__}.Spoil, init_args: {{{spoil}}}}}"])
    assert stop.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def check(folder: Path, said: str, data: Any) -> None:
    """The images named are the batch's, and everything saved is from before the step."""
    batch = torch.load(folder / "not_finite" / "step_000006_batch_rank_0.pt", weights_only=True)
    data.setup("fit")
    rows = [data.store.paths().index(path) for path in batch["files"]]
    images = as_images(data.store.pixels[rows]) / 255
    for file, image, original in zip(batch["files"], batch["batch"], images, strict=True):
        assert file in said
        assert image.isinf().all() or torch.equal(image, original) or torch.equal(image, original.flip(-1))
    before, last = (
        torch.load(path, weights_only=True)
        for path in (folder / "not_finite" / "step_000006.ckpt", folder / "checkpoints" / "last.ckpt")
    )
    assert (before["global_step"], last["global_step"]) == (7, 4)  # the skipped step counts
    for checkpoint in (before, last):
        weights = checkpoint["state_dict"].items()
        assert all(tensor.isfinite().all() for name, tensor in weights if ".running_" not in name)


@pytest.mark.parametrize(
    "more", [[], ["--trainer.callbacks+={class_path: callbacks.SaveLast, init_args: {every_n_train_steps: 7}}"]]
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_images(
    more: list[str], fruits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also if a checkpoint is due right after that step."""
    said = stopped(capfd, "what: image", tiny("fit", fruits, *more))
    terms = "train/loss, train/reconstruction, train/kl, train/kl_per_latent, train/bits_per_dim"
    assert f"not finite in step 6 (epoch 1, batch 2): {terms}. Its 4 images: " in said
    check(next(Path("runs").iterdir()), said, FruitsDataModule(str(fruits), size=16, batch_size=4))


@pytest.mark.parametrize("step", [6, 7])
def test_a_gradient_that_is_not_finite_is_named(step: int, fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also in the last step of an epoch."""
    said = stopped(capfd, f"what: gradient, step: {step}", tiny("fit", fruits))
    assert f"not finite in step {step} (epoch 1, batch {step - 4}): the gradient of decoder.6.weight." in said
    assert said.count("the gradient of") == 1


@pytest.mark.parametrize(
    "make", [partial(Adam, fused=True), partial(SGD, fused=True), SGD, RMSprop], ids=["adam", "fused", "sgd", "rmsprop"]
)
def test_a_step_is_skipped_on_the_device(make: Callable[..., Optimizer]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make([weight], lr=0.1)
    seen = []
    for gradient in (1, torch.nan, 1):
        weight.grad = torch.tensor([1, gradient, 1.0])
        skip_if(~weight.grad.isfinite().all(), optimizer, [weight.grad])
        optimizer.step()
        seen.append(weight.detach().clone())
    assert torch.equal(seen[1], seen[0])
    assert (seen[2] < seen[1]).all()


@pytest.mark.parametrize(("what", "at_most"), [("gradient", 30), ("gradient", 1), ("image", 30)])
def test_a_grad_scaler_skips_steps_with_infinite_gradients_and_says_so(
    what: str,
    at_most: int,
    fruits: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("callbacks.not_finite.MAX_SKIPPED", at_most)
    scaler = "{class_path: torch.amp.GradScaler, init_args: {device: cpu, init_scale: 1}}"
    plugin = f"{{class_path: {PLUGIN}, init_args: {{precision: 16-mixed, device: cpu, scaler: {scaler}}}}}"
    arguments = tiny("fit", fruits, f"--trainer.plugins+={plugin}", "--trainer.precision=null")
    if what == "image":  # the step could be skipped, but BatchNorm's statistics are spoiled
        assert "not finite in step 6 (epoch 1, batch 2): train/loss" in stopped(capfd, "what: image", arguments)
    elif at_most == 1:
        said = stopped(capfd, "what: gradient", arguments)
        assert "not finite in step 6 (epoch 1, batch 2): the gradient of decoder.6.weight." in said
    else:
        main([*arguments, f"--trainer.callbacks+={{class_path: {__name__}.Spoil, init_args: {{what: gradient}}}}"])
        assert (
            "16-mixed: skipped 1 of the steps in epoch 1, as float16 could not hold their gradients." in caplog.messages
        )


def test_the_batch_that_did_it_is_found_among_accumulated_ones(
    paintings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=9", "--data.init_args.flip=true"]
    said = stopped(capfd, "what: image", tiny("fit", paintings, *more, config=COLORIZER))
    assert "not finite in step 6 (epoch 3, batch 0): train/mse, train/mae, train/loss. Its 4 images: " in said
    folder = next(Path("runs").iterdir())
    batch = torch.load(folder / "not_finite" / "step_000006_batch_rank_0.pt", weights_only=True)
    assert batch["batch"][0].isinf().all()


def test_all_processes_stop_and_the_one_that_did_it_names_its_images(
    paintings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp_fork",
        "--data.init_args.batch_size=2",
        "--trainer.max_epochs=3",
    ]
    spoil = f"--trainer.callbacks+={{class_path: {__name__}.Spoil, init_args: {{what: image, rank: 1}}}}"
    with pytest.raises(Exception, match="NotFiniteError: not finite in step 6"):
        main(tiny("fit", paintings, *two, "--trainer.max_epochs=3", spoil, config=COLORIZER))
    folder = next(Path("runs").iterdir())
    spoiled = [
        torch.load(folder / "not_finite" / f"step_000006_batch_rank_{rank}.pt", weights_only=True)["batch"]
        .isinf()
        .any()
        for rank in (0, 1)
    ]
    assert spoiled == [False, True]


def test_finite_gradients_whose_sum_float16_cannot_hold_are_let_pass() -> None:
    module = LightningModule()
    module.weight = torch.nn.Parameter(torch.zeros(100, dtype=torch.float16))
    module.weight.grad = torch.full_like(module.weight, 1000)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    checks = StopWhenNotFinite()
    checks.on_before_optimizer_step(trainer, module, torch.optim.SGD([module.weight], lr=1))


@pytest.mark.filterwarnings("ignore")  # Lightning warns that nothing was returned
def test_a_model_may_skip_steps() -> None:
    trainer = Trainer(max_epochs=1, logger=False, callbacks=StopWhenNotFinite(), limit_train_batches=4)
    trainer.fit(SkipsSteps())
    assert trainer.state.status == "finished"


class SkipsOneBatch(ConvVAE):
    def training_step(self, images: Tensor, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return super().training_step(images, batch_idx) if batch_idx != 1 else None


@pytest.mark.filterwarnings("ignore")  # Lightning warns that nothing was returned
def test_a_vae_may_skip_a_batch(fruits: Path) -> None:
    model, data = SkipsOneBatch(16, latent_dim=4, lr=0.001), FruitsDataModule(str(fruits), size=16, batch_size=4)
    trainer = Trainer(max_epochs=1, logger=False, callbacks=StopWhenNotFinite(), log_every_n_steps=1)
    trainer.fit(model, data)
    assert trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.slow
def test_an_epoch_without_gradients_is_no_fault(fruits: Path) -> None:
    """StochasticWeightAveraging ends with one for BatchNorm's statistics, which then belong to the average."""
    averaging = "{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.001, swa_epoch_start: 1, device: null}}"
    run = main(tiny("fit", fruits, f"--trainer.callbacks+={averaging}", "--trainer.max_epochs=3"))
    norm = next(module for module in run.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.num_batches_tracked == 4  # counted anew in that epoch of 4 batches
