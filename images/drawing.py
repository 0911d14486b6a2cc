"""Pictures made of many images: grids, pairs, film strips and maps."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from system.atomic import writing

COLUMNS = 8
MARGIN = 2  # pixels of white around each image
MAP_SIZE, MAP_THUMBNAIL = 1000, 36  # pixels: sides of a map and of each image on it
FILM_EPOCHS = 12  # at most, as rows of a film strip, spaced evenly over the run


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whatever the name's suffix; a missing folder is created."""
    with writing(path) as file:
        image.save(file, "PNG")


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """Return a URL that holds a picture; ``kind`` and ``options`` are those of Pillow's ``save``."""
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(images: Tensor, columns: int) -> Image.Image:
    """Lay out images (B, 3, H, W) in [0, 1] in rows, as 8-bit RGB."""
    return to_pil_image(make_grid(images.cpu(), columns, padding=MARGIN, pad_value=1))


def mosaic(images: Iterable[Tensor], num_images: int, columns: int) -> Image.Image:
    """Lay out images (3, H, W) in [0, 1], all of one size, as :func:`grid` does.

    It takes them one by one, so they need not be in memory all at once.
    """
    columns, margin = min(columns, num_images), MARGIN if num_images > 1 else 0
    for index, image in enumerate(images):
        height, width = (side + margin for side in image.shape[1:])
        if index == 0:
            size = columns * width + margin, math.ceil(num_images / columns) * height + margin
            canvas = Image.new("RGB", size, "white")
        row, column = divmod(index, columns)
        canvas.paste(to_pil_image(image.cpu()), (column * width + margin, row * height + margin))
    return canvas


def pairs(above: Tensor, below: Tensor) -> Image.Image:
    """Lay out images (B, 3, H, W) in [0, 1] in rows, each with its partner right below it."""
    columns = min(COLUMNS, len(above))
    blanks = above.new_ones(-len(above) % columns, *above.shape[1:])
    rows = [torch.cat([images, blanks]).unflatten(0, (-1, columns)) for images in (above, below)]
    return grid(torch.stack(rows, dim=1).flatten(0, 2), columns)


def scattered(images: Tensor, places: Tensor, thumbnail: int = MAP_THUMBNAIL) -> Image.Image:
    """Center thumbnails of images (B, 3, H, W) in [0, 1] on places (B, 2) in [-1, 1], across and down."""
    margin = (MAP_SIZE - thumbnail) / 2
    canvas = Image.new("RGB", (MAP_SIZE, MAP_SIZE), "white")
    for image, (x, y) in zip(images.cpu(), (margin + margin * places).tolist(), strict=True):
        canvas.paste(to_pil_image(image).resize((thumbnail, thumbnail)), (round(x), round(y)))
    return canvas


def film_strip(
    grids: list[Path], num_rows: int, film_row: int, fixed_rows: Mapping[int, str], headings: Sequence[str] = ()
) -> Image.Image:
    """Stack one row of each grid between the fixed rows, with its epoch beside it (the number in the file's name).

    Headings stand above equal parts of the rows.
    """
    frames = torch.linspace(0, len(grids) - 1, min(FILM_EPOCHS, len(grids))).round().long().tolist()
    lines = [
        *((grids[0], row, label) for row, label in fixed_rows.items() if row < film_row),
        *((grids[frame], film_row, f"epoch\n{int(grids[frame].stem.removeprefix('epoch_'))}") for frame in frames),
        *((grids[0], row, label) for row, label in fixed_rows.items() if row > film_row),
    ]
    with Image.open(grids[0]) as first:
        width, row_height = first.width, (first.height - MARGIN) // num_rows
    size = max(10, row_height // 6)
    font = ImageFont.load_default(size)
    label_width = int(max(font.getlength(f"  {word}") for *_, label in lines for word in label.split()))
    top = 2 * size if headings else 0
    strip = Image.new("RGB", (label_width + width, top + len(lines) * row_height + MARGIN), "white")
    pen = ImageDraw.Draw(strip)
    for part, heading in enumerate(headings):
        middle = (label_width + (2 * part + 1) * width // (2 * len(headings)), top // 2)
        pen.text(middle, heading, fill="black", font=font, anchor="mm")
    for line, (path, row, label) in enumerate(lines):
        with Image.open(path) as image:
            shown = image.crop((0, row * row_height, width, (row + 1) * row_height))
        strip.paste(shown, (label_width, top + line * row_height))
        middle = (label_width // 2, top + line * row_height + row_height // 2)
        pen.text(middle, label, fill="black", font=font, anchor="mm", align="center")
    return strip
