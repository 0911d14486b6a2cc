"""Pictures to choose from, to save, and to point into; they lie within the page, so that no file is served."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).with_name("pictures.js").read_text()  # for a gr.HTML that holds some of them


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    file = BytesIO()
    image.save(file, kind, compress_level=1, quality=88)  # the former is for PNG, the latter for JPEG
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def img(image: Image.Image, alt: str, kind: str = "PNG") -> str:
    """Return a picture as HTML; ``alt`` is for those who cannot see it."""
    return f'<img src="{data_url(image, kind)}" alt="{escape(alt)}">'


def saveable(image: Image.Image, caption: str, name: str) -> str:
    """Return the HTML of a picture, its caption, and a link that saves it as ``name``, a PNG."""
    label = f"Save as {escape(name)} ({image.width} x {image.height})"
    save = f'<a href="{data_url(image)}" download="{escape(name)}">{label}</a>'
    return f'<figure class="saveable">{img(image, caption)}<figcaption>{escape(caption)}{save}</figcaption></figure>'


def strip(tiles: Iterable[str], style: str = "") -> str:
    """Return the HTML of a row of tiles.

    Args:
        style: ``--least``, a tile's least width, and ``--aspect``, which its picture is cropped to; see page.css.
    """
    return f"<div class='strip' style='{style}'>{''.join(tiles)}</div>"


def tile(image: Image.Image, caption: str, what: object = None, is_current: bool = False) -> str:
    """Return the HTML of a picture and a caption of some lines; it is a button if there is something for it to send."""
    title, *more = map(escape, filter(None, caption.split("\n")))
    inside = f"{img(image, '', 'JPEG')}<b>{title}</b><small>{'<br>'.join(more)}</small>"
    if what is None:
        return f"<div>{inside}</div>"
    sent = escape(str(what))
    return f"<button data-act='choose' data-what='{sent}' aria-current='{str(is_current).lower()}'>{inside}</button>"


def frame(image: Image.Image, alt: str, kind: str = "PNG", marks: str = "") -> str:
    """Return the HTML of a large picture, with marks on it."""
    style = f"--ratio: {image.width / image.height:g}"
    return f"<div class='frame' style='{style}'>{img(image, alt, kind)}{marks}</div>"


def pad(
    image: Image.Image, label: str, kind: str = "PNG", spot: tuple[float, float] | None = None, marks: str = ""
) -> str:
    """Return the HTML of a picture to point into, with marks, and a ring at the spot, from which arrow keys start."""
    ring = f"<i style='{at(*spot)}'></i>" if spot else "<i></i>"
    return (
        f"<div class='pad' role='slider' tabindex='0' aria-label='{escape(label)}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='50'>{frame(image, '', kind, marks + ring)}</div>"
    )


def at(x: float, y: float) -> str:
    return f"left: {100 * x:g}%; top: {100 * y:g}%"
