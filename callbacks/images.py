"""Pictures of what a model has learned, epoch after epoch."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from callbacks.media import media_folder, publish
from callbacks.resuming import Interrupted
from colorization.files import has_own_format
from colorization.pictures import colorize_files
from evaluation import evaluating

COLUMNS = 8
MARGIN = 2  # pixels of white around each image
MAP_SIZE, MAP_THUMBNAIL = 1000, 36  # pixels, of a map of the latent space and of each image on it
MAP_IMAGES = 300
MAP_BATCH = 64  # of these at a time; all together would take more memory than training does
FILM_EPOCHS = 12  # rows of a film strip at most, spaced evenly over the run


class EpochPicture(Callback, ABC):
    """A picture after an epoch's validation: ``media/<name>/epoch_0000.png`` and so on.

    What a subclass draws must neither change the model nor use the global random state.

    Args:
        every_n_epochs: between two pictures; the last of ``max_epochs`` has one in any case.

    Raises:
        ValueError: if ``every_n_epochs`` is not positive.
    """

    name: str

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"{type(self).__name__}: every_n_epochs is {every_n_epochs}, needs 1 or more.")
        self.every_n_epochs = every_n_epochs

    @abstractmethod
    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        """Return the picture, of any size."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        due = epoch % self.every_n_epochs == 0 or epoch + 1 == trainer.max_epochs
        if due and trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            path = self.media / self.name / f"epoch_{epoch:04d}.png"
            publish(self.picture(trainer, pl_module), path, trainer, self.name)


class EpochImages(EpochPicture):
    """A grid of images after an epoch, and at the end of the run a film strip, ``media/<name>.png``: a row of each."""

    num_rows: int
    film_row: int  # of each grid, which the film strip shows
    fixed_rows: ClassVar[dict[int, str]] = {}  # what those rows show that are the same in all grids

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        """Return (num_rows * columns, 3, H, W) in [0, 1]."""

    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        images = self.draw(trainer, pl_module)
        return grid(images, len(images) // self.num_rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        grids = sorted((self.media / self.name).glob("epoch_*.png"))
        if trainer.is_global_zero and grids:
            film = film_strip(grids, self.num_rows, self.film_row, self.fixed_rows)
            publish(film, self.media / f"{self.name}.png", trainer, f"film/{self.name}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted) and trainer.current_epoch > 0:  # when it looked good, or for a while
            self.on_fit_end(trainer, pl_module)


class LogReconstructions(EpochImages):
    """Validation images, ever the same ones and from all over the set, and under them their reconstructions."""

    name = "reconstructions"
    num_rows = 2
    film_row = 1
    fixed_rows: ClassVar = {0: "original"}

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        images = validation_images(trainer)
        return torch.cat([images, pl_module.reconstruct(images)])


class LogColorizations(EpochImages):
    """Validation images, ever the same ones and from all over the set: their lightness, colorized, as they are."""

    name = "colorizations"
    num_rows = 3
    film_row = 1
    fixed_rows: ClassVar = {0: "lightness", 2: "original"}

    def draw(self, trainer: Trainer, pl_module: Any) -> Tensor:
        images = validation_images(trainer)
        lightness, chroma = pl_module.split(images)
        return torch.cat([pl_module.join(lightness, torch.zeros_like(chroma)), pl_module.colorize(images), images])


class LogSamples(EpochImages):
    """New images, decoded from the same noise after every epoch.

    On the left their latents are drawn from the prior; on the right from a mixture of Gaussians, where
    :class:`callbacks.FitSamplers` has fitted one to the codes of the training images.
    """

    name = "samples"
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


class LogLatentMap(EpochPicture):
    """A map of the latent space: validation images, ever the same ones, where their codes lie."""

    name = "latent_map"

    def picture(self, trainer: Trainer, pl_module: Any) -> Image.Image:
        images = validation_images(trainer, MAP_IMAGES)
        with evaluating(pl_module):
            codes = [pl_module.encode(some)[0] for some in images.split(MAP_BATCH)]
        return latent_map(images, torch.cat(codes))


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


class SaveColorized(Callback):
    """In ``predict``, the file of every test image in color, in its full size and format: ``media/colorized/``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.colorized = media_folder(trainer) / "colorized"

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        num_seen = int(sum(trainer.num_predict_batches)) * data.batch_size
        outputs = {}
        for file in data.test_files()[trainer.global_rank :: trainer.world_size][:num_seen]:
            output = self.colorized / file
            outputs[data.folder / file] = output if has_own_format(output) else Path(f"{output}.png")
        colorize_files(pl_module, outputs)


def validation_images(trainer: Trainer, number: int = COLUMNS) -> Tensor:
    """Return up to ``number`` images from all over the validation set, ever the same ones, on the device."""
    return trainer.strategy.batch_to_device(spread_out(trainer.val_dataloaders.dataset, number))  # type: ignore[union-attr]


def spread_out(images: Dataset[Tensor], number: int) -> Tensor:
    """Return up to ``number`` images from all over a set, ever the same ones."""
    size = len(images)  # type: ignore[arg-type]
    indices = torch.linspace(0, size - 1, min(number, size)).long().tolist()
    return torch.stack([images[index] for index in indices])


def grid(images: Tensor, columns: int) -> Image.Image:
    """Lay images (B, 3, H, W) in [0, 1] out in rows, as 8-bit RGB."""
    return to_pil_image(make_grid(images.cpu(), columns, padding=MARGIN, pad_value=1))


def latent_map(images: Tensor, codes: Tensor) -> Image.Image:
    """Center thumbnails of images (B, 3, H, W) in [0, 1] on the two principal components of their codes (B, D)."""
    codes = codes.cpu() - codes.cpu().mean(dim=0)
    components = torch.linalg.svd(codes, full_matrices=False).Vh[:2]
    components *= components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()  # which is arbitrary
    places = codes @ components.T
    places = F.pad(places, (0, 2 - places.shape[1]))  # of a single image or latent there is one component
    margin = (MAP_SIZE - MAP_THUMBNAIL) / 2
    places = margin + places * margin / places.abs().max().clamp(min=1e-12)  # both to one scale
    canvas = Image.new("RGB", (MAP_SIZE, MAP_SIZE), "white")
    for image, (x, y) in zip(images.cpu(), places.tolist(), strict=True):
        canvas.paste(to_pil_image(image).resize((MAP_THUMBNAIL, MAP_THUMBNAIL)), (round(x), round(y)))
    return canvas


def film_strip(grids: list[Path], num_rows: int, film_row: int, fixed_rows: dict[int, str]) -> Image.Image:
    """Stack one row of each grid between the fixed rows, beside it its epoch (the number in the file's name)."""
    frames = torch.linspace(0, len(grids) - 1, min(FILM_EPOCHS, len(grids))).round().long().tolist()
    lines = [
        *((grids[0], row, label) for row, label in fixed_rows.items() if row < film_row),
        *((grids[frame], film_row, f"epoch\n{int(grids[frame].stem.removeprefix('epoch_'))}") for frame in frames),
        *((grids[0], row, label) for row, label in fixed_rows.items() if row > film_row),
    ]
    with Image.open(grids[0]) as first:
        width, row_height = first.width, (first.height - MARGIN) // num_rows
    font = ImageFont.load_default(max(10, row_height // 6))
    label_width = int(max(font.getlength(f"  {word}") for *_, label in lines for word in label.split()))
    strip = Image.new("RGB", (label_width + width, len(lines) * row_height + MARGIN), "white")
    write = ImageDraw.Draw(strip)
    for line, (path, row, label) in enumerate(lines):
        with Image.open(path) as image:
            shown = image.crop((0, row * row_height, width, (row + 1) * row_height))
        strip.paste(shown, (label_width, line * row_height))
        middle = (label_width // 2, line * row_height + row_height // 2)
        write.text(middle, label, fill="black", font=font, anchor="mm", align="center")
    return strip
