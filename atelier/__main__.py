"""Open a page to play in, with the models that are trained: python -m atelier"""

import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from cli.arguments import ArgumentParser, local_path
from system.command import Command
from system.errors import PigmentError
from system.signals import handling, interrupt

RUNS = Path("runs")
DESCRIPTION = """\
Open a page on which you color pictures, walk among fruit, and compare runs. Nothing needs to be trained: two models
come with Pigment, and those of your runs appear once they have a checkpoint. Nothing leaves this machine unless you
share the page."""


def main(args: Sequence[str] | None = None) -> int:
    with Command() as command:
        options = make_parser().parse_args(args)
        if options.runs != RUNS and not options.runs.is_dir():
            raise PigmentError(f"there is no folder '{options.runs}': --runs must name the folder of your runs")
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise PigmentError(
                "the page needs Gradio, which is not installed: .venv/bin/pip install 'gradio>=6.31,<7'"
            ) from None
        from atelier.page import open_page
        from study.models import Models

        models = Models(options.runs, options.ckpt)
        with handling(interrupt), open_page(models, options.host, options.port, options.share) as address:
            print(f"The page is at {address} until you press Ctrl-C.")
            threading.Event().wait()
    return command.status


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("python -m atelier", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--runs", type=local_path, default=RUNS, help="folder of the runs (default: %(default)s)")
    parser.add_argument(
        "--ckpt", type=local_path, action="append", default=[], help="one more checkpoint; can be repeated"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)"
    )
    parser.add_argument("--port", type=port, help="port to listen on (default: the first free from 7860)")
    parser.add_argument("--share", action="store_true", help="make a public address, through Gradio's servers")
    return parser


def port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65_536):
        raise ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
