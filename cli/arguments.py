"""What all commands but train.py parse their options with; what a type raises is the message that the user reads."""

import argparse
import os
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from typing import NoReturn

from system.errors import shown


class ArgumentParser(argparse.ArgumentParser):
    """Python's own, whose errors quote nothing that could control the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))


def local_path(text: str) -> Path:
    """Expand ``~``, which the shell leaves alone after ``--out=``."""
    return Path(os.path.expanduser(text))


def at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"must be a whole number, {least} or more, not {text}")
    if number >= 2**63:
        raise ArgumentTypeError(f"must be less than 2**63, not {text}")  # what PyTorch can hold
    return number


positive, seed = partial(at_least, 1), partial(at_least, 0)


def fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return number
