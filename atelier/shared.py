"""What the tabs share: HTML from templates, how the page answers, and what a visitor's session holds."""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from colorization.color import name_of
from colorization.easel import small
from colorization.hints import to_hex
from images.drawing import data_url
from system.errors import PigmentError
from system.templates import read_template

SCRIPT = Path(__file__).with_name("pictures.js").read_text()  # for a gr.HTML to click or point into
# only the newest of quick events counts; without Gradio's queue, errors would not be shown
AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "at once", "trigger_mode": "always_last"}
# for events that bring data of their own: one that was held back would come again with the data of an earlier one
EACH: dict[str, Any] = {**AT_ONCE, "trigger_mode": "multiple"}
LONG: dict[str, Any] = {"show_progress": "minimal", "concurrency_id": "long"}  # one at a time, or memory could run out

Thing = TypeVar("Thing")
DRAWN = count()  # pads so far


HTML: Any = read_template(  # the macros of page.html.jinja
    Path(__file__).with_name("page.html.jinja"),
    png=partial(data_url, kind="PNG", compress_level=1),  # in the page itself, so no file needs to be served
    jpeg=partial(data_url, kind="JPEG", quality=88),
    image=Image.fromarray,
    small=small,
    hex=to_hex,
    name=name_of,
    stamp=lambda label: next(DRAWN),
).module


def command_line(label: str, where: str, visible: bool = True) -> gr.Textbox:
    """Show a command to copy, and where to run it."""
    return gr.Textbox(
        label=label, info=where, lines=4, max_lines=8, buttons=["copy"], interactive=False, visible=visible
    )


def there(thing: Thing | None) -> Thing:
    """Return what a visitor's session holds.

    Raises:
        PigmentError: if it was forgotten: after an hour, after a restart of the server, or among too many visitors.
    """
    if thing is None:
        raise PigmentError("the page has forgotten what you had here; choose it once more")
    return thing
