"""Show an error as one line on the page, and keep the server running."""

import html
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from system.errors import PigmentError, shown
from system.hardware import within_memory


@contextmanager
def said_on_the_page() -> Iterator[None]:
    """Let the page show the line of a PigmentError. Use it to decorate what answers an event."""
    try:
        with within_memory("Try a smaller picture, or a smaller model."):
            yield
    except PigmentError as error:
        raise gr.Error(html.escape(shown(error)), print_exception=False) from error
