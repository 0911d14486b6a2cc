"""How the page answers: at once, or one long task after the other; and an error as one line."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gradio as gr

from system.errors import PigmentError, shown
from system.hardware import within_memory

# only the newest of quick events counts; without Gradio's queue, errors would not be shown
AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "at once", "trigger_mode": "always_last"}
# for events that bring data of their own: one that was held back would come again with the data of an earlier one
EACH: dict[str, Any] = {**AT_ONCE, "trigger_mode": "multiple"}
LONG: dict[str, Any] = {"show_progress": "minimal", "concurrency_id": "long"}  # one at a time, or memory could run out

Thing = TypeVar("Thing")


@contextmanager
def said_on_the_page() -> Iterator[None]:
    """Let the page show the line of a PigmentError. Use it to decorate what answers an event."""
    try:
        with within_memory("Try a smaller picture, or a smaller model."):
            yield
    except PigmentError as error:
        raise gr.Error(html.escape(shown(error)), print_exception=False) from error


def there(thing: Thing | None) -> Thing:
    """Return what a visitor's session holds.

    Raises:
        PigmentError: if it was forgotten: after an hour, after a restart of the server, or among too many visitors.
    """
    if thing is None:
        raise PigmentError("the page has forgotten what you had here; choose it once more")
    return thing
