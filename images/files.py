"""Image files: found, read upright at full bit depth, and written in their original format."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from system.atomic import writing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})  # they mark an image
FORMATS: dict[str, dict[str, Any]] = {  # what can be written, with Pillow's options
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "WEBP": {"quality": 95},
    "BMP": {},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
MIN_SIDE = 8  # pixels; anything smaller is a tracking pixel or an icon, and would be scaled up to flat color
MAX_PIXELS = 80_000_000  # of an image in a store; a process that reads one needs 3 bytes per pixel, and more to scale
NOT_BY_OPENCV = {262: 0, 284: 2, 338: (1,)}  # TIFF tags OpenCV ignores: white is 0, separate planes, color times alpha

Pixels = NDArray[Any]  # (H, W, 3 or 4), np.uint8 or np.uint16: RGB, and alpha if there is any


class Found(NamedTuple):
    """A file that is named like an image."""

    path: str  # below the folder that was searched
    num_bytes: int = 0  # 0, like the times, if the file cannot be examined
    modified: int = 0  # ns
    changed: int = 0  # ns; unlike ``modified``, it also changes with chmod and cp -p


class Picture(NamedTuple):
    pixels: Pixels
    exif: bytes  # without the orientation; written only with 8-bit images
    format: str  # a key of FORMATS


def find_images(root: Path, skip: Path | None = None) -> Iterator[Found]:
    """Yield every file named like an image in a folder and its subfolders; hidden ones are skipped.

    Links are followed, and each folder is searched once. Subfolders that cannot be listed and broken links are yielded
    as well: the attempt to read them says what is wrong.

    Args:
        skip: a subfolder that is not searched.
    """
    seen = set()
    if skip and skip.is_dir() and not skip.samefile(root):
        seen.add((skip.stat().st_dev, skip.stat().st_ino))
    pending = [""]
    while pending:
        folder = pending.pop()
        subfolders = []
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:  # a link may lead back up
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listing:
                for entry in listing:
                    if entry.name.startswith("."):
                        continue
                    path = os.path.join(folder, entry.name)
                    is_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                    try:
                        if entry.is_dir():
                            subfolders.append(path)
                        elif is_image:
                            status = entry.stat()
                            yield Found(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    except OSError:
                        if is_image:
                            yield Found(path)
        except OSError:
            yield Found(folder)
        pending += subfolders


def has_own_format(path: Path) -> bool:
    """Whether a file of this name keeps its format; all others become PNGs."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def read(path: Path) -> Picture:
    """Decode an image file upright and at full bit depth; an animation gives its first frame.

    Raises:
        ValueError: if it is not a file, or its values have no defined range.
        Exception: whatever Pillow raises for a damaged file; there are many kinds.
    """
    with open_file(path) as file, open_image(file) as image:
        pixels = upright(np.asarray(decode(image, file)), orientation(image))
        # a TIFF's tags describe how it was stored
        exif = Image.Exif() if isinstance(image, TiffImageFile) else read_exif(image)
        name = "JPEG" if image.format == "MPO" else image.format
    exif.pop(ExifTags.Base.Orientation, None)
    try:
        metadata = exif.tobytes() if exif else b""
    except Exception:  # tags of the wrong type raise all sorts of errors, and the picture is worth more than its tags
        metadata = b""
    return Picture(pixels, metadata, name if name in FORMATS and has_own_format(path) else "PNG")


def read_square(content: bytes, size: int) -> NDArray[np.uint8]:
    """Decode an image file for training: upright, in 8 bits, on white where it is transparent.

    Returns:
        (size, size, 3), RGB: the shorter side is scaled to ``size``, the longer one cropped around its center.

    Raises:
        ValueError: as :func:`read`, and if the image is too small or too large.
        Exception: as :func:`read`.
    """
    file = io.BytesIO(content)
    with open_image(file) as image:
        if min(image.size) < MIN_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels, needs {MIN_SIDE} x {MIN_SIDE} or more")
        image.draft(None, (2 * size, 2 * size))  # JPEG: leave out the detail that scaling down would lose
        if image.width * image.height > MAX_PIXELS:  # Pillow's own limit is twice as high
            raise ValueError(f"{image.width} x {image.height} pixels, may have {MAX_PIXELS:,} at most")
        decoded = decode(image, file)
        if isinstance(decoded, np.ndarray):
            decoded = Image.fromarray((decoded / 257).round().astype(np.uint8))
        if decoded.mode == "RGBA":
            decoded = Image.alpha_composite(Image.new("RGBA", decoded.size, "white"), decoded).convert("RGB")
        if decoded.size != (size, size):  # else fit would copy it
            decoded = ImageOps.fit(decoded, (size, size), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(upright(np.asarray(decoded), orientation(image)))


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to be read.

    Raises:
        ValueError: if it is a pipe or a device, which might never end.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("a pipe or a device, not a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # otherwise opening a pipe waits for a writer


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[ImageFile]:
    """Read an image's header. Takes an open file: given a path, Pillow 12.3 garbles TIFFs that are stored sideways."""
    with warnings.catch_warnings(action="ignore"), Image.open(file) as image:  # it raises if an image is far too large
        yield image


def decode(image: ImageFile, file: IO[bytes]) -> Image.Image | NDArray[np.uint16]:
    """Decode an open image as RGB, or RGBA if it is transparent: in 8 bits, or as an array (H, W, 3 or 4) of 16."""
    if has_16_bits(image):
        return read_16_bits(image, file)
    if image.mode.startswith(("I", "F")):
        raise ValueError("its values' range is not known; save it with 8 or 16 bits")
    image.load()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert would copy it


def has_16_bits(image: ImageFile) -> bool:
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(258, ())  # BitsPerSample
    return image.format == "PNG" and ";16" in str(image.tile)  # describes the encoded data, such as "RGB;16B"


def read_16_bits(image: ImageFile, file: IO[bytes]) -> NDArray[np.uint16]:
    """Decode a PNG or TIFF with OpenCV, as Pillow keeps only 8 of a color image's 16 bits."""
    cv2 = load_opencv()
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    ignored = any(tags.get(tag) == value for tag, value in NOT_BY_OPENCV.items())
    if pixels is None or pixels.dtype != np.uint16 or ignored or (pixels.ndim == 2 and image.has_transparency_data):
        raise ValueError("damaged, or an unusual kind of 16-bit image; save it as plain, interleaved RGB or gray")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if image.has_transparency_data else cv2.COLOR_BGR2RGB)


def load_opencv() -> Any:
    """Import OpenCV, which few files need, and silence it: our own one-line errors say what is wrong with a file."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def orientation(image: Image.Image) -> int:
    """Return a loaded image's EXIF orientation; a TIFF's is 1, upright, because Pillow has already turned it."""
    return 1 if isinstance(image, TiffImageFile) else read_exif(image).get(ExifTags.Base.Orientation, 1)


def read_exif(image: Image.Image) -> Image.Exif:
    """Return an image's EXIF, empty if it is damaged."""
    try:
        return image.getexif()
    except Exception:  # a broken header raises all sorts of errors, and the picture is worth more than its metadata
        return Image.Exif()


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror pixels (H, W, ...) from an EXIF orientation to upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def write(picture: Picture, path: Path) -> None:
    """Write a file whole or not at all, replacing an old one.

    Raises:
        PigmentError: if it cannot be written.
    """
    pixels, exif, name = picture
    with writing(path) as file:
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(file, name, exif=exif, **FORMATS[name])
        else:
            cv2 = load_opencv()
            bgr = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
            cv2.imencode(f".{name.lower()}", bgr)[1].tofile(file)
