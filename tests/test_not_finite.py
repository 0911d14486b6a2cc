from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import StopWhenNotFinite
from datamodules import FruitsDataModule
from datamodules.folder import as_images
from tests.world import CONFIGS, tiny
from train import main

COLORIZER = CONFIGS / "colorization" / "4_shallow_adam.yaml"


class Spoil(Callback):
    """Spoil an image or a gradient in step 6: the third batch of the second epoch."""

    def __init__(self, what: str, rank: int = 0) -> None:
        self.what, self.rank = what, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if self.what == "image" and trainer.global_step == 6 and trainer.global_rank == self.rank:
            batch[0] = torch.inf

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.what == "gradient" and trainer.global_step == 6:
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
    assert (before["global_step"], last["global_step"]) == (6, 4)
    for checkpoint in (before, last):
        weights = checkpoint["state_dict"].items()
        assert all(tensor.isfinite().all() for name, tensor in weights if ".running_" not in name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_images(
    fruits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = stopped(capfd, "what: image", tiny("fit", fruits))
    terms = "train/loss, train/reconstruction, train/kl, train/kl_per_latent, train/bits_per_dim"
    assert f"not finite in step 6 (epoch 1, batch 2): {terms}. Its 4 images: " in said
    check(next(Path("runs").iterdir()), said, FruitsDataModule(str(fruits), size=16, batch_size=4))


def test_a_gradient_that_is_not_finite_is_named(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = stopped(capfd, "what: gradient", tiny("fit", fruits))
    assert "not finite in step 6 (epoch 1, batch 2): the gradient of decoder.6.weight." in said
    assert said.count("the gradient of") == 1


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
