"""Rows of pictures with captions, which can be clicked."""

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLICKS = """
element.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) trigger("click", {act: button.dataset.act, what: button.dataset.what});
});
"""  # a gr.HTML's; the event has what the button's attributes data-act and data-what say


def strip(pictures: Iterable[tuple[NDArray[np.uint8], str]], current: int | None = None, style: str = "") -> str:
    """Return a row of pictures, (H, W, 3) and a caption of some lines, as HTML; a click gives a picture's number.

    Args:
        current: the number of the picture that is chosen.
        style: ``--least``, a picture's width, and ``--aspect``, which it is cropped to; see page.css.
    """
    parts = []
    for number, (pixels, caption) in enumerate(pictures):
        title, *more = map(escape, filter(None, caption.split("\n")))
        chosen = "aria-current='true'" if number == current else ""
        parts.append(
            f"<button data-act='choose' data-what='{number}' {chosen}><img src='{as_address(pixels)}' alt=''>"
            f"<b>{title}</b><small>{'<br>'.join(more)}</small></button>"
        )
    return f"<div class='strip' style='{style}'>{''.join(parts)}</div>"


def as_address(pixels: NDArray[np.uint8]) -> str:
    """Return an address that holds a picture itself, as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
