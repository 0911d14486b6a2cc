"""Pictures of what a model has learned, epoch after epoch."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from callbacks.media import media_folder, publish

COLUMNS = 8
MARGIN = 2  # pixels of white around each image
FILM_EPOCHS = 12  # rows of a film strip at most, spaced evenly over the run


class EpochImages(Callback, ABC):
    """After each epoch's validation a grid of images, and at the end of the run a film strip: a row an epoch.

    The grids are ``media/<name>/epoch_0000.png`` and so on, the strip is ``media/<name>.png``.
    What a subclass draws must neither change the model nor use the global random state.
    """

    name: str
    num_rows: int
    film_row: int  # the row of each grid that the film strip shows, headed by the rows above it

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        """Return (num_rows * columns, 3, H, W) in [0, 1]."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            images = self.draw(trainer, pl_module)
            path = self.media / self.name / f"epoch_{trainer.current_epoch:04d}.png"
            publish(grid(images, len(images) // self.num_rows), path, trainer, self.name)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        grids = sorted((self.media / self.name).glob("epoch_*.png"))
        if trainer.is_global_zero and grids:
            film = film_strip(grids, self.num_rows, self.film_row)
            publish(film, self.media / f"{self.name}.png", trainer, f"film/{self.name}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):  # stopped when it looked good
            self.on_fit_end(trainer, pl_module)


class LogReconstructions(EpochImages):
    """Validation images, ever the same ones and from all over the set, and under them their reconstructions."""

    name = "reconstructions"
    num_rows = 2
    film_row = 1

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        spread = torch.linspace(0, len(dataset) - 1, min(COLUMNS, len(dataset))).long().tolist()
        images = trainer.strategy.batch_to_device(torch.stack([dataset[index] for index in spread]))
        return torch.cat([images, pl_module.reconstruct(images)])


class LogSamples(EpochImages):
    """New images, decoded from the same latents after every epoch."""

    name = "samples"
    num_rows = 4
    film_row = 0

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        return pl_module.sample(self.num_rows * COLUMNS, seed=0)


class SavePredictions(Callback):
    """In ``predict``, every image beside what the model makes of it: ``media/predictions/batch_0000.png`` and so on."""

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
        pairs = grid(torch.cat([batch, outputs], dim=-1), COLUMNS // 2)
        path = self.media / "predictions" / f"batch_{batch_idx:04d}_rank_{trainer.global_rank}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs.save(path)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Lay images (B, 3, H, W) in [0, 1] out in rows, as 8-bit RGB."""
    return to_pil_image(make_grid(images.cpu(), columns, padding=MARGIN, pad_value=1))


def film_strip(grids: list[Path], num_rows: int, film_row: int) -> Image.Image:
    """Stack one row of each grid, with its epoch (the number in the file's name) beside it."""
    frames = torch.linspace(0, len(grids) - 1, min(FILM_EPOCHS, len(grids))).round().long().tolist()
    first = Image.open(grids[0])
    row_height = (first.height - MARGIN) // num_rows
    font = ImageFont.load_default(max(10, row_height // 5))
    label_width = int(font.getlength(" epoch "))
    strip = Image.new("RGB", (label_width + first.width, (film_row + len(frames)) * row_height + MARGIN), "white")
    strip.paste(first.crop((0, 0, first.width, film_row * row_height)), (label_width, 0))
    write = ImageDraw.Draw(strip)
    for line, frame in enumerate(frames, start=film_row):
        with Image.open(grids[frame]) as image:
            row = image.crop((0, film_row * row_height, image.width, (film_row + 1) * row_height))
        strip.paste(row, (label_width, line * row_height))
        epoch = int(grids[frame].stem.removeprefix("epoch_"))
        middle = (label_width // 2, line * row_height + row_height // 2)
        write.text(middle, f"epoch\n{epoch}", fill="black", font=font, anchor="mm", align="center")
    return strip
