"""Train all ten colorizers on the same images, compare them on a page, and list what all runs reached"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.arguments import ArgumentParser, local_path, positive, seed
from cli.quiet import quiet_lightning
from study.overview import print_runs
from study.page import write_page
from study.training import CONFIGS, train_all
from system.command import Command
from system.errors import shown
from system.hardware import USE_CPU, within_memory

RUN = """\
Train models one after the other, or one on each GPU, each through train.py. Finished models are skipped, stopped ones
resume, and failures are listed at the end. Options that are not listed here go to train.py."""
LIST = "List all runs that have trained for at least an epoch, the newest first, with what they reached."
PAGE = "Test all finished models on the same held-out images, and write study.html and study.csv."


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("python -m study", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", description=RUN, help="train models", allow_abbrev=False)
    run.add_argument("--configs", nargs="+", type=local_path, default=CONFIGS, help="YAML files (default: all ten)")
    run.add_argument(
        "--root",
        type=os.path.expanduser,
        help="folder of images, or kaggle:... (default: the config's, else demo images)",
    )
    run.add_argument("--epochs", type=positive, help="epochs of each model (default: its config's)")
    run.add_argument(
        "--size",
        type=positive,
        help="height and width of the images, in pixels (default: that of the first config with such images)",
    )
    run.add_argument("--seeds", nargs="+", type=seed, default=[0], help="train each model once per seed (default: 0)")
    run.add_argument("--scratch", action="store_true", help="start pre-trained networks from random weights instead")
    page = commands.add_parser("page", description=PAGE, help="compare finished models", allow_abbrev=False)
    listing = commands.add_parser("list", description=LIST, help="list all runs", allow_abbrev=False)
    listing.add_argument(
        "folder",
        type=local_path,
        nargs="?",
        default=Path("runs"),
        help="folder to search, at any depth (default: %(default)s)",
    )
    for command in (run, page):
        command.add_argument(
            "--out", type=local_path, default=Path("runs/study"), help="folder of the study (default: %(default)s)"
        )
    return parser


def main(args: Sequence[str] | None = None) -> int:
    with Command() as command:
        parser = make_parser()
        options, more = parser.parse_known_args(args)
        if options.command == "run":
            return train_all(options, more)
        if more:
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        if options.command == "list":
            print_runs(options.folder)
            return command.status
        quiet_lightning()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        with within_memory(USE_CPU):
            print(f"Page  {shown(write_page(options.out))}")
    return command.status


if __name__ == "__main__":
    sys.exit(main())
