"""Pictures to choose from, to save, and to point into; they lie within the page, so that no file is served."""

import base64
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from colorization.easel import small
from colorization.hints import to_hex
from system.templates import read_template

SCRIPT = Path(__file__).with_name("pictures.js").read_text()  # for a gr.HTML that holds some of them


def data_url(image: Image.Image, kind: str) -> str:
    file = BytesIO()
    image.save(file, kind, compress_level=1, quality=88)  # the former is for PNG, the latter for JPEG
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


HTML: Any = read_template(  # its macros
    Path(__file__).with_name("page.html.jinja"),
    png=partial(data_url, kind="PNG"),
    jpeg=partial(data_url, kind="JPEG"),
    image=Image.fromarray,
    small=small,
    hex=to_hex,
).module
