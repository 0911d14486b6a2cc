"""Save dashboards in Weights & Biases, in place of those that were saved before: python -m dashboard"""

import sys
from collections.abc import Sequence

import wandb

from cli.arguments import ArgumentParser
from resuming.loggers import need_server
from system.command import Command
from system.errors import PigmentError, reason, shown


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("python -m dashboard", description=__doc__, allow_abbrev=False)
    parser.add_argument("--project", default="pigment", help="the project that the runs go to (default: %(default)s)")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    with Command() as command:
        options = make_parser().parse_args(args)
        need_server("dashboards are kept by W&B's server")
        try:
            from dashboard.saving import save_all
        except ImportError:
            raise PigmentError(
                "dashboards need wandb-workspaces, which is not installed: .venv/bin/pip install "
                "'wandb-workspaces>=0.4.13,<0.5'"
            ) from None
        try:
            saved = save_all(options.project)
        except wandb.Error as error:
            raise PigmentError(f"W&B did not save the dashboards: {reason(error)}") from error
        for title, address in saved.items():
            print(shown(f"{title:24}{address}"))
    return command.status


if __name__ == "__main__":
    sys.exit(main())
