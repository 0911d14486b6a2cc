"""The one kind of error that users see, and how to word it."""

from typing import Any, get_args

from PIL import UnidentifiedImageError


class PigmentError(Exception):
    """Something cannot be done as asked. The message is the line that the user reads: what is wrong and what to do.

    Attributes:
        status: the program's exit status.
        is_shared: whether all processes of a run raise it together.
    """

    status = 2
    is_shared = False


def reason(error: BaseException) -> str:
    """Say in one line why something failed."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return said.strip().partition("\n")[0] or type(error).__name__


def shown(text: object) -> str:
    """Return a text as one line for the terminal, with unprintable characters escaped as in ``repr``.

    A file's name may hold anything: a newline that fakes one of our lines, a code that moves the cursor, or bytes that
    are not text.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def check_choice(argument: str, given: str, choices: Any) -> None:
    """Raise a ValueError unless ``given`` is a value of a Literal; only the command line checks annotations."""
    if given not in get_args(choices):
        raise ValueError(f"{argument} is '{given}', must be {' or '.join(get_args(choices))}.")
