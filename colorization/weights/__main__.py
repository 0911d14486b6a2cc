"""Make a checkpoint the model that comes with the project: python -m colorization.weights CKPT"""

import sys
from collections.abc import Sequence

from cli.arguments import ArgumentParser, local_path
from colorization import PaletteColorizer
from colorization.weights import PALETTE
from resuming.checkpoints import load_model, write_safetensors
from system.command import Command
from system.errors import PigmentError

LARGEST = 8_000_000  # bytes; everyone who fetches the project fetches them, too
DESCRIPTION = """\
Write the palette colorizer of a checkpoint in half precision, as the model that `python -m colorization` uses unless it
is given another. Whoever uses it needs neither pre-trained weights nor a network connection."""


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m colorization.weights", description=DESCRIPTION)
    parser.add_argument("ckpt", type=local_path, help="checkpoint of a palette colorizer (configs/colorization/10_…)")
    parser.add_argument("--out", type=local_path, default=PALETTE, help="file to write (default: %(default)s)")
    with Command() as command:
        options = parser.parse_args(args)
        model, checkpoint = load_model(options.ckpt, PaletteColorizer)
        if model.curve is None:
            raise PigmentError(f"'{options.ckpt}' was never validated, which calibrates its vividness: train it longer")
        if not model.freeze_encoder:  # it has learned, so it does not matter where it began
            del checkpoint["hyper_parameters"]["weights"]
        write_safetensors(checkpoint, options.out, LARGEST)
    return command.status


if __name__ == "__main__":
    sys.exit(main())
