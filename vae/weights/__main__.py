"""Make a checkpoint the VAE that comes with the project: python -m vae.weights CKPT"""

import sys
from collections.abc import Sequence

from cli.arguments import ArgumentParser, local_path
from resuming.checkpoints import load_model, write_safetensors
from system.command import Command
from vae import VAE
from vae.weights import FRUIT

LARGEST = 16_000_000  # bytes; everyone who fetches the project fetches them, too
DESCRIPTION = """\
Write a checkpoint's VAE and its samplers in half precision, as the model that `python -m vae` uses unless it is given
another."""


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m vae.weights", description=DESCRIPTION)
    parser.add_argument("ckpt", type=local_path, help="checkpoint of a VAE (configs/vae_residual.yaml)")
    parser.add_argument("--out", type=local_path, default=FRUIT, help="file to write (default: %(default)s)")
    with Command() as command:
        options = parser.parse_args(args)
        vae, checkpoint = load_model(options.ckpt, VAE)
        vae.fitted_codes()
        write_safetensors(checkpoint, options.out, LARGEST)
    return command.status


if __name__ == "__main__":
    sys.exit(main())
