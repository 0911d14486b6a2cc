"""Play with a trained VAE: python -m vae sample --out samples.png"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from cli.arguments import ArgumentParser, fraction, local_path, positive, seed
from datamodules.folder import in_batches
from images.drawing import COLUMNS, grid, mosaic, pairs, save_png
from modes import evaluating
from resuming.artifacts import on_this_machine
from resuming.checkpoints import WholeCheckpointIO, is_safetensors, load_model, training_data
from system.atomic import make_folders
from system.command import Command
from system.errors import PigmentError, shown
from system.hardware import within_memory
from vae import VAE
from vae.chart import NUM_CHARTED, Chart
from vae.codes import Sampler, slerp
from vae.play import NUM_CORNERS, REACH, Fruit, between, nearest, places, read_image
from vae.weights import FRUIT

BATCH = 256  # images decoded at a time


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

    command = {run: add(run) for run in (sample, reconstruct, interpolate, walk, traverse, chart, neighbors)}
    command[fit] = add(fit, "checkpoint")
    command[reconstruct].add_argument("files", nargs="+", type=local_path, metavar="FILE")
    command[interpolate].add_argument("files", nargs=2, type=local_path, metavar="FILE")
    command[walk].add_argument(
        "fruits",
        nargs="+",
        type=fruit,
        metavar="FRUIT",
        help="a seed, such as 17 or prior:17, or an image file; 17@1,0,-2 is 17, moved by so many standard deviations "
        "along the principal directions",
    )
    command[walk].add_argument(
        "--at", type=place, metavar="ACROSS[,DOWN]", help="draw only the image there; 0.5,0.5 is in the middle"
    )
    for run, what in {interpolate: "images between the two", walk: "images on each side"}.items():
        command[run].add_argument("--steps", type=positive, default=COLUMNS, help=f"{what} (default: %(default)s)")
    command[traverse].add_argument(
        "--directions", type=positive, default=8, help="how many, the longest first (default: %(default)s)"
    )
    command[chart].add_argument(
        "--number",
        type=positive,
        default=NUM_CHARTED,
        help="training images to lay out, of which those are drawn that do not overlap (default: %(default)s)",
    )
    for run, number in {sample: 8 * COLUMNS, neighbors: COLUMNS}.items():
        command[run].add_argument(
            "--number", type=positive, default=number, help="number of images (default: %(default)s)"
        )
        command[run].add_argument(
            "--seed", type=seed, default=0, help="the same seed draws the same images (default: %(default)s)"
        )
        command[run].add_argument(
            "--sampler", choices=get_args(Sampler), default="mixture", help="what to draw from (default: %(default)s)"
        )
    for run in (chart, neighbors, fit):
        command[run].add_argument(
            "--root", type=os.path.expanduser, help="folder of the training images (default: the run's)"
        )
    return parser


def fruit(text: str) -> Fruit:
    return Fruit.parse(os.path.expanduser(text))


def place(text: str) -> list[Tensor]:
    """Read how far across and down, from 0 to 1."""
    across, _, down = text.partition(",")
    return [torch.tensor([fraction(share)]) for share in (across, down or "0")]


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
    images = torch.cat([read_image(path, vae) for path in options.files])
    save_png(pairs(images, vae.reconstruct(images)), options.out)


def interpolate(options: argparse.Namespace) -> None:
    """A strip that leads from one image file to another, along the arc between their codes."""
    vae, _ = load_model(options.ckpt, VAE)
    images = torch.cat([read_image(path, vae) for path in options.files])
    with evaluating(vae):
        first, second = vae.encode(images)[0]
        steps = vae.decode(slerp(first, second, torch.linspace(0, 1, options.steps, device=vae.device)))
    save_png(grid(torch.cat([images[:1], steps, images[1:]]), len(steps) + 2), options.out)


def walk(options: argparse.Namespace) -> None:
    """A fruit, a strip from one to another, or a square between three or four."""
    if len(options.fruits) > NUM_CORNERS:
        raise PigmentError(f"a walk is between {NUM_CORNERS} fruits at most, not {len(options.fruits)}")
    vae, _ = load_model(options.ckpt, VAE)
    corners = [fruit.code(vae) for fruit in options.fruits]
    images = between(vae, corners, *(options.at or places(len(corners), options.steps)))
    save_png(grid(images, options.steps), options.out)


def traverse(options: argparse.Namespace) -> None:
    """A row for each principal direction of the training images' codes, through their mean."""
    vae, _ = load_model(options.ckpt, VAE)
    codes = vae.fitted_codes()
    directions = codes.directions[: options.directions, None]
    distances = torch.linspace(-REACH, REACH, COLUMNS + 1)[:, None]
    with evaluating(vae):
        images = vae.decode((codes.center + distances * directions).flatten(0, 1).to(vae.device))
    save_png(grid(images, COLUMNS + 1), options.out)


def chart(options: argparse.Namespace) -> None:
    """Training images where their codes lie, along the first two principal directions."""
    vae, checkpoint = load_model(options.ckpt, VAE)
    data = training_data(checkpoint, vae.image_size, options.root)
    save_png(Chart.of_images(*data.examples("train", options.number), vae).picture, options.out)


def neighbors(options: argparse.Namespace) -> None:
    """New images, and below each the training image that differs least from it."""
    vae, checkpoint = load_model(options.ckpt, VAE)
    images = vae.sample(options.number, options.seed, options.sampler)
    training = training_data(checkpoint, vae.image_size, options.root).images("train")
    indices = nearest(images, in_batches(training, vae.device, "Comparing"))
    save_png(pairs(images.cpu(), training.__getitems__(indices.tolist()) / 255), options.out)


def fit(options: argparse.Namespace) -> None:
    """Write a checkpoint whose samplers are fitted to the codes of all training images."""
    if is_safetensors(options.out):
        raise PigmentError(f"'{options.out}' must not end in .safetensors: a checkpoint is written")
    vae, checkpoint = load_model(options.ckpt, VAE)
    training = training_data(checkpoint, vae.image_size, options.root).images("train")
    vae.fit_samplers(in_batches(training, vae.device, "Encoding"))
    vae.on_save_checkpoint(checkpoint)
    WholeCheckpointIO().save_checkpoint(checkpoint, options.out)


if __name__ == "__main__":
    sys.exit(main())
