"""Pictures of what a model has learned, epoch after epoch."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from callbacks.media import media_folder, publish
from callbacks.schedule import is_due
from datamodules.folder import spread_out
from images.drawing import COLUMNS, FILM_EPOCHS, film_strip, grid, save_png
from modes import evaluating
from system.signals import Interrupted
from vae.chart import BATCH, NUM_CHARTED, latent_map


class EpochPicture(Callback, ABC):
    """A picture after an epoch's validation: ``media/<name>/epoch_0000.png`` and so on.

    Drawing must neither change the model nor use the global random state.

    Args:
        every_n_epochs: epochs from one picture to the next; the last of ``max_epochs`` always gets one.

    Raises:
        ValueError: if ``every_n_epochs`` is not positive.
    """

    name: str
    caption: ClassVar[str]  # what W&B says below a picture, after its epoch

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"{type(self).__name__}: every_n_epochs is {every_n_epochs}, must be 1 or more.")
        self.every_n_epochs = every_n_epochs

    @abstractmethod
    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        """Return the picture, of any size."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_watched = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero
        if is_watched and is_due(trainer, self.every_n_epochs):
            path = self.media / self.name / f"epoch_{trainer.current_epoch:04d}.png"
            caption = f"epoch {trainer.current_epoch}: {self.caption}"
            publish(self.picture(trainer, pl_module), path, trainer, self.name, caption)


class EpochImages(EpochPicture):
    """A grid of images after an epoch, and after the run a film strip with a row of some: ``media/<name>.png``."""

    num_rows: int
    film_row: int  # the row of each grid that the film strip shows
    fixed_rows: ClassVar[dict[int, str]] = {}  # rows that are the same in all grids, and what they show

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        """Return (num_rows * columns, 3, H, W) in [0, 1]."""

    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        images = self.draw(trainer, pl_module)
        return grid(images, len(images) // self.num_rows)

    def headings(self, pl_module: Any) -> tuple[str, ...]:
        """Return what the film strip says above equal parts of its rows."""
        return ()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        grids = sorted((self.media / self.name).glob("epoch_*.png"))
        if trainer.is_global_zero and grids:
            film = film_strip(grids, self.num_rows, self.film_row, self.fixed_rows, self.headings(pl_module))
            caption = f"up to {FILM_EPOCHS} epochs, evenly spaced"
            publish(film, self.media / f"{self.name}.png", trainer, f"film/{self.name}", caption)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted) and trainer.current_epoch > 0:
            self.on_fit_end(trainer, pl_module)


class LogReconstructions(EpochImages):
    """The same validation images every epoch, evenly spaced through the set, and below them their reconstructions."""

    name = "reconstructions"
    caption = "validation images above, their reconstructions below"
    num_rows = 2
    film_row = 1
    fixed_rows: ClassVar = {0: "original"}

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        images = validation_images(trainer)
        return torch.cat([images, pl_module.reconstruct(images)])


class LogColorizations(EpochImages):
    """The same validation images every epoch, evenly spaced through the set: lightness, colorized, original."""

    name = "colorizations"
    caption = "lightness, colorized, original"
    num_rows = 3
    film_row = 1
    fixed_rows: ClassVar = {0: "lightness", 2: "original"}

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        images = validation_images(trainer)
        lightness, chroma = pl_module.split(images)
        return torch.cat([pl_module.join(lightness, torch.zeros_like(chroma)), pl_module.colorize(images), images])


class LogSamples(EpochImages):
    """New images, decoded from the same noise each time.

    Latents on the left are drawn from the prior, and on the right from the mixture, if :class:`callbacks.FitSamplers`
    fits one. Give both the same ``every_n_epochs``: in other epochs, the mixture is older than the weights.
    """

    name = "samples"
    caption = "new images, from the prior; on the right, if there are two halves, from the mixture"
    num_rows = 4
    film_row = 0

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        num_images = self.num_rows * COLUMNS
        prior = pl_module.sample(num_images, seed=0)
        if pl_module.codes is None:
            return prior
        gap = torch.ones_like(prior[: self.num_rows])
        halves = [prior, gap, pl_module.sample(num_images, seed=0, sampler="mixture")]
        return torch.cat([half.unflatten(0, (self.num_rows, -1)) for half in halves], dim=1).flatten(0, 1)

    def headings(self, pl_module: Any) -> tuple[str, ...]:
        return ("from the prior", "from the mixture") if pl_module.codes else ("from the prior",)


class LogLatentMap(EpochPicture):
    """A map of the latent space: the same validation images every epoch, placed where their codes lie."""

    name = "latent_map"
    caption = "validation images where their codes lie"

    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        images = validation_images(trainer, NUM_CHARTED)
        with evaluating(pl_module):
            codes = [pl_module.encode(some)[0] for some in images.split(BATCH)]
        return latent_map(images, torch.cat(codes))


class SavePredictions(Callback):
    """In ``predict``, every image beside the model's result: ``media/predictions/batch_0000_rank_0.png`` and so on."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        path = self.media / "predictions" / f"batch_{batch_idx:04d}_rank_{trainer.global_rank}.png"
        save_png(grid(torch.cat([batch, outputs], dim=-1), COLUMNS // 2), path)


def validation_images(trainer: Trainer, number: int = COLUMNS) -> Tensor:
    """Return up to ``number`` validation images on the device, evenly spaced through the set."""
    return trainer.strategy.batch_to_device(spread_out(trainer.val_dataloaders.dataset, number))  # type: ignore[union-attr]
