"""Play with a trained VAE: python -m vae sample --out samples.png"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cli.arguments import ArgumentParser, local_path, positive, seed
from datamodules.folder import FolderDataModule, Images, as_images
from images.drawing import COLUMNS, grid, mosaic, pairs, save_png
from images.files import open_file
from images.reading import read_square
from modes import evaluating
from resuming.artifacts import on_this_machine
from resuming.checkpoints import WholeCheckpointIO, data_of, load_model
from system.atomic import make_folders
from system.command import Command
from system.errors import PigmentError, reason, shown
from system.hardware import within_memory
from vae import VAE
from vae.codes import Sampler, slerp
from vae.weights import FRUIT

REACH = 3  # standard deviations to follow a direction, either way
BATCH = 256  # images encoded, decoded or compared at a time


def main(args: Sequence[str] | None = None) -> int:
    with Command() as command:
        options = make_parser().parse_args(args)
        make_folders([options.out])
        if options.ckpt is None:
            options.ckpt = FRUIT
            print("Model: the VAE that comes with Pigment, trained on Fruits-360; --ckpt takes one of your own")
        options.ckpt = on_this_machine(options.ckpt)
        with within_memory("Ask for fewer images, or set CUDA_VISIBLE_DEVICES= to use the CPU."):
            options.run(options)
        print(shown(options.out))
    return command.status


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("python -m vae", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)

    def add(run: Callable[..., None], written: str = "PNG") -> ArgumentParser:
        what = (run.__doc__ or "").rstrip(".")
        command = commands.add_parser(run.__name__, help=what, description=f"{what}.", allow_abbrev=False)
        command.add_argument(
            "--ckpt", type=local_path, help="checkpoint of a VAE to use instead of the one that comes with Pigment"
        )
        command.add_argument("--out", required=True, type=local_path, help=f"{written} to write; replaces an old one")
        command.set_defaults(run=run)
        return command

    command = {run: add(run) for run in (sample, reconstruct, interpolate, traverse, neighbors)}
    command[fit] = add(fit, "checkpoint")
    command[reconstruct].add_argument("files", nargs="+", type=local_path, metavar="FILE")
    command[interpolate].add_argument("files", nargs=2, type=local_path, metavar="FILE")
    command[interpolate].add_argument("--steps", type=positive, default=8, help="images between the two: %(default)s")
    command[traverse].add_argument(
        "--directions", type=positive, default=8, help="how many, the longest first: %(default)s"
    )
    for run, number in {sample: 8 * COLUMNS, neighbors: COLUMNS}.items():
        command[run].add_argument("--number", type=positive, default=number, help="number of images: %(default)s")
        command[run].add_argument(
            "--seed", type=seed, default=0, help="the same seed draws the same images: %(default)s"
        )
        command[run].add_argument(
            "--sampler", choices=get_args(Sampler), default="mixture", help="what to draw from: %(default)s"
        )
    for run in (neighbors, fit):
        command[run].add_argument(
            "--root", type=os.path.expanduser, help="folder of the training images; default: the run's"
        )
    return parser


def sample(options: argparse.Namespace) -> None:
    """New images."""
    vae, _ = load_model(options.ckpt, VAE)
    latents = vae.draw(options.number, options.seed, options.sampler)
    with evaluating(vae):
        batches = (vae.decode(batch.to(vae.device)).cpu() for batch in latents.split(BATCH))
        images = (image for batch in batches for image in batch)
        save_png(mosaic(images, options.number, COLUMNS), options.out)


def reconstruct(options: argparse.Namespace) -> None:
    """Image files, and below each what the VAE makes of it."""
    vae, _ = load_model(options.ckpt, VAE)
    images = read(options.files, vae)
    save_png(pairs(images, vae.reconstruct(images)), options.out)


def interpolate(options: argparse.Namespace) -> None:
    """A strip that leads from one image file to another, along the arc between their codes."""
    vae, _ = load_model(options.ckpt, VAE)
    images = read(options.files, vae)
    with evaluating(vae):
        first, second = vae.encode(images)[0]
        between = vae.decode(slerp(first, second, options.steps))
    save_png(grid(torch.cat([images[:1], between, images[1:]]), len(between) + 2), options.out)


def traverse(options: argparse.Namespace) -> None:
    """A row for each principal direction of the training images' codes, through their mean."""
    vae, _ = load_model(options.ckpt, VAE)
    codes = vae.fitted_codes()
    directions = codes.directions[: options.directions, None]
    distances = torch.linspace(-REACH, REACH, COLUMNS + 1)[:, None]
    with evaluating(vae):
        images = vae.decode((codes.center + distances * directions).flatten(0, 1).to(vae.device))
    save_png(grid(images, COLUMNS + 1), options.out)


def neighbors(options: argparse.Namespace) -> None:
    """New images, and below each the training image that differs least from it."""
    vae, checkpoint = load_model(options.ckpt, VAE)
    images = vae.sample(options.number, options.seed, options.sampler)
    training = training_images(options.root, vae, checkpoint)
    distances = [torch.cdist(images.flatten(1), batch.flatten(1)) for batch in batches(training, vae, "Comparing")]
    nearest = as_floats(training.__getitems__(torch.cat(distances, dim=1).argmin(dim=1).tolist()), vae)
    save_png(pairs(images, nearest), options.out)


def fit(options: argparse.Namespace) -> None:
    """Write a checkpoint whose samplers are fitted to the codes of all training images."""
    vae, checkpoint = load_model(options.ckpt, VAE)
    vae.fit_samplers(batches(training_images(options.root, vae, checkpoint), vae, "Encoding"))
    vae.on_save_checkpoint(checkpoint)
    WholeCheckpointIO().save_checkpoint(checkpoint, options.out)


def read(files: Sequence[Path], vae: VAE) -> Tensor:
    """Read images the way training does: (len(files), 3, S, S) in [0, 1], on the VAE's device.

    Raises:
        PigmentError: if one cannot be read.
    """
    images = []
    for path in files:
        try:
            with open_file(path) as file:
                images.append(read_square(file.read(), vae.image_size)[0])
        except Exception as error:  # damaged files raise all sorts of errors
            raise PigmentError(f"'{path}' cannot be used: {reason(error)}") from None
    return as_floats(as_images(np.stack(images)), vae)


def training_images(root: str | None, vae: VAE, checkpoint: dict[str, Any]) -> Images:
    """Find the training images in a folder, or where the checkpoint's run found them.

    Raises:
        PigmentError: if there are fewer than two.
    """
    given = {} if root is None else {"root": root}
    data: FolderDataModule = data_of(checkpoint, **given, size=vae.image_size, batch_size=BATCH)
    images = data.images("train")
    if len(images) < 2:
        raise PigmentError(f"'{data.folder}' has {len(images)} training images, needs 2 or more")
    return images


def batches(images: Images, vae: VAE, task: str) -> Iterator[Tensor]:
    for indices in tqdm(torch.arange(len(images)).split(BATCH), task):
        yield as_floats(images.__getitems__(indices.tolist()), vae)


def as_floats(images: Tensor, vae: VAE) -> Tensor:
    return images.to(vae.device) / 255


if __name__ == "__main__":
    sys.exit(main())
