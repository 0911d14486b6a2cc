"""Play with a trained VAE: python -m vae sample --ckpt CKPT --out samples.png"""
# an entry point, like train.py: the rest of vae knows neither data nor callbacks

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoints import WholeCheckpointIO
from callbacks.images import COLUMNS, grid
from colorization.files import reason
from datamodules import FruitsDataModule, PaintingsDataModule
from datamodules.folder import Images
from datamodules.judge import as_images, decode
from datamodules.store import DataError
from evaluation import evaluating
from vae import ConvVAE
from vae.codes import NotFittedError, Sampler, fit_codes, slerp

DATA_MODULES = {f"datamodules.{kind.__name__}": kind for kind in (FruitsDataModule, PaintingsDataModule)}
REACH = 3  # standard deviations that a direction is followed either way
BATCH = 256  # images that are encoded or compared at a time


class UsageError(ValueError):
    """Nothing can be done as asked; the message says why."""


def main(args: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(args)
    try:
        options.run(options)
    except (UsageError, NotFittedError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(options.out)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m vae", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)

    def add(run: Callable[..., None], written: str = "PNG") -> argparse.ArgumentParser:
        what = (run.__doc__ or "").rstrip(".")
        command = commands.add_parser(run.__name__, help=what, description=f"{what}.", allow_abbrev=False)
        command.add_argument("--ckpt", required=True, help="checkpoint of a VAE")
        command.add_argument("--out", required=True, type=Path, help=f"{written} to write; an old one is replaced")
        command.set_defaults(run=run)
        return command

    command = {run: add(run) for run in (sample, reconstruct, interpolate, traverse, neighbors)}
    command[fit] = add(fit, "checkpoint")
    command[reconstruct].add_argument("files", nargs="+", type=Path, metavar="FILE")
    command[interpolate].add_argument("files", nargs=2, type=Path, metavar="FILE")
    command[interpolate].add_argument("--steps", type=positive, default=8, help="images between the two: %(default)s")
    command[traverse].add_argument(
        "--directions", type=positive, default=8, help="how many, the longest first: %(default)s"
    )
    for run, number in {sample: 8 * COLUMNS, neighbors: COLUMNS}.items():
        command[run].add_argument("--number", type=positive, default=number, help="of images: %(default)s")
        command[run].add_argument(
            "--seed", type=seed, default=0, help="the same one draws the same images: %(default)s"
        )
        command[run].add_argument(
            "--sampler", choices=get_args(Sampler), default="mixture", help="what they are drawn from: %(default)s"
        )
    for run in (neighbors, fit):
        command[run].add_argument("--root", help="folder of the training images; that of the run, if left out")
    return parser


def positive(number: str) -> int:
    if int(number) < 1:
        raise ValueError
    return int(number)


def seed(number: str) -> int:
    if not 0 <= int(number) < 2**63:
        raise ValueError
    return int(number)


def sample(options: argparse.Namespace) -> None:
    """New images."""
    vae, _ = load(options.ckpt)
    save(vae.sample(options.number, options.seed, options.sampler), COLUMNS, options.out)


def reconstruct(options: argparse.Namespace) -> None:
    """Image files, and below each what the VAE makes of it."""
    vae, _ = load(options.ckpt)
    images = read(options.files, vae)
    save_pairs(images, vae.reconstruct(images), options.out)


def interpolate(options: argparse.Namespace) -> None:
    """A strip that leads from one image file to another, along the arc between their codes."""
    vae, _ = load(options.ckpt)
    images = read(options.files, vae)
    with evaluating(vae):
        first, second = vae.encode(images)[0]
        between = vae.decode(slerp(first, second, options.steps))
    save(torch.cat([images[:1], between, images[1:]]), len(between) + 2, options.out)


def traverse(options: argparse.Namespace) -> None:
    """A row for each principal direction of the training images' codes, through their mean."""
    vae, _ = load(options.ckpt)
    codes = vae.fitted_codes()
    directions = codes.directions[: options.directions, None]
    distances = torch.linspace(-REACH, REACH, COLUMNS + 1)[:, None]
    with evaluating(vae):
        images = vae.decode((codes.center + distances * directions).flatten(0, 1).to(vae.device))
    save(images, COLUMNS + 1, options.out)


def neighbors(options: argparse.Namespace) -> None:
    """New images, and below each the training image that differs least from it."""
    vae, checkpoint = load(options.ckpt)
    images = vae.sample(options.number, options.seed, options.sampler)
    training = training_images(options.root, vae, checkpoint)
    distances = [torch.cdist(images.flatten(1), batch.flatten(1)) for batch in batches(training, vae, "Comparing")]
    nearest = as_floats(training.__getitems__(torch.cat(distances, dim=1).argmin(dim=1).tolist()), vae)
    save_pairs(images, nearest, options.out)


def fit(options: argparse.Namespace) -> None:
    """Write a checkpoint whose samplers are fitted to the codes of all training images."""
    vae, checkpoint = load(options.ckpt)
    training = training_images(options.root, vae, checkpoint)
    with evaluating(vae):
        codes = [vae.encode(batch)[0] for batch in batches(training, vae, "Encoding")]
    vae.codes = fit_codes(torch.cat(codes))
    vae.on_save_checkpoint(checkpoint)
    WholeCheckpointIO().save_checkpoint(checkpoint, options.out)


def load(path: str) -> tuple[ConvVAE, dict[str, Any]]:
    """Rebuild the VAE of a checkpoint on the GPU, if there is one, from the tensors and settings that it holds.

    No class that a file names is imported.

    Raises:
        UsageError: if it is not there, or not one of a VAE.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        settings = checkpoint["hyper_parameters"]
        vae = ConvVAE(**{name: value for name, value in settings.items() if not name.startswith("_")})
        vae.on_load_checkpoint(checkpoint)
        vae.load_state_dict(checkpoint["state_dict"])
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint '{path}'") from None
    except Exception:  # a file that is not ours can raise nearly anything
        raise UsageError(f"'{path}' is not a VAE's checkpoint, or not a whole one, or one of another version") from None
    return vae.to("cuda" if torch.cuda.is_available() else "cpu"), checkpoint


def read(files: Sequence[Path], vae: ConvVAE) -> Tensor:
    """Read images as those for training are: (len(files), 3, S, S) in [0, 1], on the VAE's device.

    Raises:
        UsageError: if one cannot be read.
    """
    images = []
    for file in files:
        try:
            images.append(decode(file.read_bytes(), vae.image_size))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise UsageError(f"'{file}' cannot be used: {reason(error)}") from None
    return as_floats(as_images(np.stack(images)), vae)


def training_images(root: str | None, vae: ConvVAE, checkpoint: dict[str, Any]) -> Images:
    """Find the images for training in a folder, or else where the checkpoint's run found them.

    Raises:
        UsageError: if there are fewer than two.
    """
    data = checkpoint.get("datamodule_hyper_parameters", {})
    kind = DATA_MODULES.get(data.get("_class_path"))
    if root is None and kind is None:
        raise UsageError("the checkpoint does not say what it was trained on: name the folder of the images by --root")
    folder = data["root"] if root is None else root
    if folder is not None and not folder.startswith("kaggle:") and not (folder and Path(folder).is_dir()):
        raise UsageError(f"there is no folder '{folder}': name that of the training images by --root")
    images = (kind or FruitsDataModule)(folder, vae.image_size, batch_size=BATCH).images("train")
    if len(images) < 2:
        raise UsageError(f"of the images in '{folder}' {len(images)} are for training, needs 2")
    return images


def batches(images: Images, vae: ConvVAE, task: str) -> Iterator[Tensor]:
    for indices in tqdm(torch.arange(len(images)).split(BATCH), task):
        yield as_floats(images.__getitems__(indices.tolist()), vae)


def as_floats(images: Tensor, vae: ConvVAE) -> Tensor:
    return images.to(vae.device) / 255


def save(images: Tensor, columns: int, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns).save(out, format="PNG")


def save_pairs(above: Tensor, below: Tensor, out: Path) -> None:
    """Draw rows of images, and each one's partner right below it."""
    columns = min(COLUMNS, len(above))
    blanks = above.new_ones(-len(above) % columns, *above.shape[1:])
    rows = [torch.cat([images, blanks]).unflatten(0, (-1, columns)) for images in (above, below)]
    save(torch.stack(rows, dim=1).flatten(0, 2), columns, out)


if __name__ == "__main__":
    sys.exit(main())
