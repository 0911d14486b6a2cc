"""How the page answers: at once, or one long task after the other; and errors as one line, so that the server goes on."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from system.errors import PigmentError, shown
from system.hardware import within_memory

# only the newest of quick events counts; without Gradio's queue, errors would not be shown
AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "at once", "trigger_mode": "always_last"}
LONG: dict[str, Any] = {"show_progress": "minimal", "concurrency_id": "long"}  # one at a time, or memory could run out


@contextmanager
def said_on_the_page() -> Iterator[None]:
    """Let the page show the line of a PigmentError. Use it to decorate what answers an event."""
    try:
        with within_memory("Try a smaller picture, or a smaller model."):
            yield
    except PigmentError as error:
        raise gr.Error(html.escape(shown(error)), print_exception=False) from error
