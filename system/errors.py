"""The one kind of error that a user meets, and the words for it."""

from typing import Any, get_args

from PIL import UnidentifiedImageError


class PigmentError(Exception):
    """Something cannot be done as asked. The message is the line that the user reads: what is wrong and what to do.

    Attributes:
        status: with which the program exits.
    """

    status = 2


def reason(error: BaseException) -> str:
    """Say in one line why something failed."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return said.strip().partition("\n")[0] or type(error).__name__


def check_choice(argument: str, given: str, choices: Any) -> None:
    """Raise a ValueError unless ``given`` is a value of a Literal; annotations are checked on the command line only."""
    if given not in get_args(choices):
        raise ValueError(f"{argument} is '{given}', needs to be {' or '.join(get_args(choices))}.")
