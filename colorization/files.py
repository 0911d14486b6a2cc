"""Image files: read upright and in their full bit depth, written in the format that they came in."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})  # that an image is known by
FORMATS: dict[str, dict[str, Any]] = {  # that are written, and how
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "WEBP": {"quality": 95},
    "BMP": {},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
UNHEEDED = {262: 0, 284: 2, 338: (1,)}  # TIFF tags that cv2 ignores: white is 0, planes lie apart, color times alpha
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file is said in one line

Pixels = NDArray[Any]  # (H, W, 3 or 4), np.uint8 or np.uint16: RGB, and alpha if there is any


class Picture(NamedTuple):
    pixels: Pixels
    exif: bytes  # without the orientation; written with 8 bits only
    format: str  # a key of FORMATS


def has_own_format(path: Path) -> bool:
    """Whether a file of this name stays what it is; any other becomes a PNG."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def reason(error: Exception) -> str:
    """Say in a line why a file could not be read or written."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return said.strip().partition("\n")[0] or type(error).__name__


def read(path: Path) -> Picture:
    """Decode an image file, upright; of several frames the first. A file that is broken can raise nearly anything."""
    if path.is_fifo():
        raise ValueError("a pipe, not a file")  # reading it might never end
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow refuses what is far too large, and the rest is of no use
        path.open("rb") as file,
        Image.open(file) as image,  # from a path, Pillow 12.3 garbles TIFFs that lie on their side
    ):
        if has_16_bits(image):
            pixels = read_16_bits(path, image)
        elif image.mode.startswith(("I", "F")):
            raise ValueError("values whose range is not known; save it with 8 or 16 bits")
        else:
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        pixels = upright(pixels, orientation(image))
        # a TIFF's tags describe how it was stored
        exif = Image.Exif() if isinstance(image, TiffImageFile) else read_exif(image)
        name = "JPEG" if image.format == "MPO" else image.format
    exif.pop(ExifTags.Base.Orientation, None)
    try:
        metadata = exif.tobytes() if exif else b""
    except Exception:  # tags of the wrong type can raise nearly anything; the picture is worth more than they are
        metadata = b""
    return Picture(pixels, metadata, name if name in FORMATS and has_own_format(path) else "PNG")


def orientation(image: Image.Image) -> int:
    """Return how an image that was loaded lies, as EXIF numbers it; Pillow itself has brought a TIFF upright, 1."""
    return 1 if isinstance(image, TiffImageFile) else read_exif(image).get(ExifTags.Base.Orientation, 1)


def read_exif(image: Image.Image) -> Image.Exif:
    """Return an image's EXIF; none where it is damaged."""
    try:
        return image.getexif()
    except Exception:  # a broken header can raise nearly anything, and the picture is worth more than its metadata
        return Image.Exif()


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror pixels (H, W, ...) that lie as an EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def has_16_bits(image: ImageFile) -> bool:
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(258, ())  # BitsPerSample
    return image.format == "PNG" and ";16" in str(image.tile)  # what is to be decoded, such as "RGB;16B"


def read_16_bits(path: Path, image: ImageFile) -> Pixels:
    """Decode a PNG or TIFF of 16 bits with cv2, since Pillow keeps 8 of them if they are of color."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    unheeded = any(tags.get(tag) == value for tag, value in UNHEEDED.items())
    if pixels is None or pixels.dtype != np.uint16 or unheeded or (pixels.ndim == 2 and image.has_transparency_data):
        raise ValueError("damaged, or an unusual kind of 16-bit image; save it as plain, interleaved RGB or gray")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if image.has_transparency_data else cv2.COLOR_BGR2RGB)


def write(picture: Picture, path: Path) -> None:
    """Write a file whole or not at all, in place of any that is there."""
    pixels, exif, name = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if pixels.dtype == np.uint8:
                Image.fromarray(pixels).save(file, name, exif=exif, **FORMATS[name])
            else:
                bgr = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
                cv2.imencode(f".{name.lower()}", bgr)[1].tofile(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
