"""Train the report's nine models on one data set, and write the report anew: python -m study run, and then report"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from callbacks.resuming import Interrupted
from datamodules.store import DataError
from study.report import write_report
from study.training import CONFIGS, StudyError, train_all

RUN = """\
Train models one after the other, or one on each GPU, each through train.py. What is finished is skipped, what was
stopped goes on, and what fails is named at the end. Every option that is not listed here is given to train.py."""
REPORT = "Measure all finished models on the same held-out images, and write report.html, report.md and report.csv."


def positive(number: str) -> int:
    if int(number) < 1:
        raise ValueError
    return int(number)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m study", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", description=RUN, help="train models", allow_abbrev=False)
    run.add_argument(
        "--configs", nargs="+", type=Path, default=CONFIGS, help="YAML files; the report's nine, if left out"
    )
    run.add_argument("--root", help="folder of images, or kaggle:...; demo images, if left out")
    run.add_argument("--epochs", type=positive, help="of each model; those of its config, if left out")
    run.add_argument("--size", type=positive, help="of the images, in pixels; that of the config, if left out")
    run.add_argument("--seeds", nargs="+", type=int, default=[0], help="train each model once with each of these")
    run.add_argument("--scratch", action="store_true", help="begin a pre-trained network with random weights")
    report = commands.add_parser("report", description=REPORT, help="write the report", allow_abbrev=False)
    for command in (run, report):
        command.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the study: %(default)s")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options, more = parser.parse_known_args(args)
    if more and options.command == "report":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        if options.command == "report":
            logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
            warnings.filterwarnings("ignore", "The .* does not have many workers")
            print(f"Report  {write_report(options.out)}")
            return 0
        return train_all(options, more)
    except (StudyError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Interrupted as stop:
        print("\nStopped. The same command goes on from there.", file=sys.stderr)
        return int(str(stop.code))


if __name__ == "__main__":
    sys.exit(main())
