import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from images.files import find_images, read, read_square

SIZE = 24
RAMP = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
COLOR = np.stack([RAMP, RAMP.T, 1 - RAMP], axis=-1)
ALPHA = np.concatenate([COLOR, RAMP[..., None] > 0.5], axis=-1)


def pillow(pixels: np.ndarray, name: str, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.convert(mode or image.mode).save(file, name)
    return file.getvalue()


def tiff(pixels: np.ndarray, photometric: str = "minisblack", **more: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **more)
    return file.getvalue()


def bits(values: np.ndarray, number: int) -> np.ndarray:
    return (values * (2**number - 1)).round().astype(np.uint8 if number == 8 else np.uint16)


ODD: dict[str, Callable[[], bytes]] = {
    "gray.png": lambda: pillow(bits(RAMP, 8), "PNG"),
    "palette.png": lambda: pillow(bits(COLOR, 8), "PNG", "P"),
    "bilevel.png": lambda: pillow(bits(RAMP, 8), "PNG", "1"),
    "alpha.png": lambda: pillow(bits(ALPHA, 8), "PNG"),
    "gray alpha.png": lambda: pillow(bits(ALPHA, 8), "PNG", "LA"),
    "cmyk.tif": lambda: pillow(bits(COLOR, 8), "TIFF", "CMYK"),
    "lab.tif": lambda: pillow(bits(COLOR, 8), "TIFF", "LAB"),
    "16 bits.png": lambda: pillow(bits(RAMP, 16), "PNG"),
    "16 bits.tif": lambda: tiff(bits(RAMP, 16)),
    "16 bits, color.tif": lambda: tiff(bits(COLOR, 16), "rgb"),
    "16 bits, alpha.tif": lambda: tiff(bits(ALPHA, 16), "rgb", extrasamples=["unassalpha"]),
    "16 bits, white is 0.tif": lambda: tiff(bits(RAMP, 16), "miniswhite"),
    "16 bits, planes.tif": lambda: tiff(bits(COLOR, 16).transpose(2, 0, 1), "rgb", planarconfig=2),
    "16 bits, times alpha.tif": lambda: tiff(bits(ALPHA, 16), "rgb", extrasamples=["assocalpha"]),
    "12 bits.tif": lambda: tiff(bits(RAMP, 12)).replace(  # the tag of 16 bits a sample, made 12
        b"\x02\x01\x03\x00\x01\x00\x00\x00\x10", b"\x02\x01\x03\x00\x01\x00\x00\x00\x0c"
    ),
    "8 bits, white is 0.tif": lambda: tiff(bits(RAMP, 8), "miniswhite"),
    "signed.tif": lambda: tiff(bits(RAMP, 8).astype(np.int16)),
    "float.tif": lambda: tiff(RAMP.astype(np.float32)),
    "32 bits.tif": lambda: tiff(bits(RAMP, 16).astype(np.uint32)),
    "half.png": lambda: pillow(bits(COLOR, 8), "PNG")[:-100],
    "half, 16 bits.png": lambda: pillow(bits(RAMP, 16), "PNG")[:400],
    "text.png": lambda: b"I am no image",
}
REFUSED = {  # and why
    "16 bits, white is 0.tif": "unusual kind",
    "16 bits, planes.tif": "unusual kind",
    "16 bits, times alpha.tif": "unusual kind",
    "12 bits.tif": "range is not known",
    "signed.tif": "unusual kind",
    "float.tif": "range is not known",
    "32 bits.tif": "range is not known",
    "half.png": "truncated",
    "half, 16 bits.png": "damaged",
    "text.png": "cannot identify",
}


@pytest.mark.parametrize("name", ODD)
def test_training_and_use_agree_on_a_file(name: str, tmp_path: Path) -> None:
    """The same pixels, or the same reason for having none."""
    path, content = tmp_path / name, ODD[name]()
    path.write_bytes(content)
    if name in REFUSED:
        said = []
        for reader in (lambda: read(path), lambda: read_square(content, SIZE)):
            with pytest.raises((ValueError, OSError), match=REFUSED[name]) as refusal:
                reader()
            said.append(str(refusal.value).partition("<")[0].partition("'")[0])
        assert said[0] == said[1]
    else:
        pixels = read(path).pixels
        pixels = pixels / np.iinfo(pixels.dtype).max
        if pixels.shape[2] == 4:
            pixels = 1 - pixels[..., 3:] * (1 - pixels[..., :3])  # on white
        assert np.abs(read_square(content, SIZE) - 255 * pixels).max() <= 1
        assert np.ptp(pixels) > 0.5  # neither black nor white


def test_images_are_found_through_links_and_once(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/sub/b.JPG", "in/.hidden/c.png", "in/notes.txt", "elsewhere/d.tif", "in/out/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.png").symlink_to("missing.png")
    found = sorted(file.path for file in find_images(tmp_path / "in", skip=tmp_path / "in" / "out"))
    assert found == ["a.png", "linked/d.tif", "nowhere.png", "sub/b.JPG"]
