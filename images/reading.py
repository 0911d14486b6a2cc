"""Read images, in the same way for training and for use: upright, in sRGB, the largest of several pages."""

import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from images import png
from images.files import open_file
from images.profiles import as_rgb, convert_to_srgb, profile_of
from images.writing import Notes, Picture, Pixels, metadata_of, written_as
from system.errors import reason

# what Pillow may open; it would hand others, such as PostScript, to external programs
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
MIN_SIDE = 8  # pixels; anything smaller is a tracking pixel or an icon, and would be scaled up to flat color
MAX_PIXELS = 80_000_000  # of an image in a store; a process that reads one needs 3 bytes per pixel, and more to scale
NO_RANGE = "not gray or RGB of up to 16 unsigned bits; save it as one of these"
FULL = 65535  # the highest value of 16 bits
BITS_PER_SAMPLE = 258  # a TIFF's tag
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # bytes; by default 1 MB, which metadata can exceed
# Pillow opens TIFFs of few depths; it need not decode the others, because tifffile does
for prefix, fill, depth, extra in itertools.product((b"II", b"MM"), (1, 2), range(9, 17), ((), (0,), (1,), (2,))):
    for photometric, mode, num_colors in ((0, "L", 1), (1, "L", 1), (2, "RGB", 3)):
        key = (prefix, photometric, (1,), fill, (depth,) * (num_colors + len(extra)), extra)
        TiffImagePlugin.OPEN_INFO.setdefault(key, (mode, mode))
Result = TypeVar("Result")


class Unfit(ValueError):
    """An undamaged image that cannot be used."""


UNDAMAGED = (Unfit, UnidentifiedImageError, Image.DecompressionBombError, MemoryError)  # errors that do not mean damage


def read(path: Path) -> Picture:
    """Decode an image file upright and at full bit depth.

    Raises:
        ValueError: if its format is not read, it is not a regular file, or its values have no defined range.
        OSError: if it is damaged, or cannot be opened.
        Image.DecompressionBombError: if it has more than 178 megapixels.
    """

    def use(file: IO[bytes], image: ImageFile, notes: Notes) -> Picture:
        pixels, exif = decode(file, image, notes)
        name = written_as(path, image)
        return Picture(upright(np.asarray(pixels), exif), name, metadata_of(file, image, exif, name, notes), notes)

    with open_file(path) as file:
        return despite_metadata(file, use)


def read_square(content: bytes, size: int) -> tuple[NDArray[np.uint8], Notes]:
    """Decode an image file for training: upright, in 8 bits, on white where it is transparent.

    Returns:
        (size, size, 3), RGB: the shorter side is scaled to ``size``, the longer one cropped around its center.

    Raises:
        ValueError: if its values have no defined range, or it is too small or too large.
        OSError: if it is damaged.
    """

    def use(file: IO[bytes], image: ImageFile, notes: Notes) -> tuple[NDArray[np.uint8], Notes]:
        if min(image.size) < MIN_SIDE:
            raise Unfit(f"{image.width} x {image.height} pixels, needs {MIN_SIDE} x {MIN_SIDE} or more")
        image.draft(None, (2 * size, 2 * size))  # JPEG: leave out the detail that scaling down would lose
        if image.width * image.height > MAX_PIXELS:  # Pillow's own limit is twice as high
            raise Unfit(f"{image.width} x {image.height} pixels, may have {MAX_PIXELS:,} at most")
        pixels, exif = decode(file, image, notes)
        if isinstance(pixels, np.ndarray):
            pixels = Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels / 257).round().astype(np.uint8))
        if pixels.mode == "RGBA":
            pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
        if pixels.size != (size, size):  # else fit would copy it
            pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(upright(np.asarray(pixels), exif)), notes

    return despite_metadata(io.BytesIO(content), use)


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """View pixels (N, H, W, 3) as images (N, 3, H, W), channels last in memory: networks train faster on these."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def despite_metadata(file: IO[bytes], use: Callable[[IO[bytes], ImageFile, Notes], Result]) -> Result:
    """Open an image and use it; if that fails, try without a PNG's metadata, because the pixels matter more."""
    errors = []
    for version, notes in versions(file):
        try:
            # an open file: given a path, Pillow 12.3 garbles TIFFs that are stored sideways
            with warnings.catch_warnings(action="ignore"), Image.open(version, formats=FORMATS) as image:
                choose_page(image, notes)
                return use(version, image, notes)
        except Exception as error:  # damaged files raise all sorts of errors
            errors.append(error)
    first = errors[0]
    if isinstance(first, UNDAMAGED) or (isinstance(first, OSError) and first.errno):
        raise first
    raise OSError(f"damaged ({reason(first)})") from first


def versions(file: IO[bytes]) -> Iterator[tuple[IO[bytes], Notes]]:
    """Yield an image file, then copies of a PNG with less and less metadata, and the notes for each."""
    yield file, {}
    file.seek(0)
    content = file.read(len(png.SIGNATURE))
    if content == png.SIGNATURE:
        content += file.read()
        for kinds in (png.PIXELS + png.COLORS, png.PIXELS):
            yield io.BytesIO(png.only(kinds, content)), {"damage": "read without its damaged metadata"}


def choose_page(image: ImageFile, notes: Notes) -> None:
    """Turn to the largest page of a TIFF, because the first may be a preview; note which page or frame is read."""
    if not isinstance(image, TiffImageFile):
        # an MPO is one photograph with extras
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if num_frames > 1:
            notes["page"] = f"only frame 1 of {num_frames}"
        return
    areas = []
    with suppress(Exception):  # EOFError after the last page; a damaged one raises all sorts of errors
        for page in itertools.count():
            area = 0
            with suppress(KeyError, SyntaxError):  # a page of an unknown kind cannot be chosen
                image.seek(page)
                area = image.width * image.height
            areas.append(area)
    image.seek(areas.index(max(areas)))
    if len(areas) > 1:
        notes["page"] = f"only page {image.tell() + 1} of {len(areas)}, the largest"


def decode(file: IO[bytes], image: ImageFile, notes: Notes) -> tuple[Image.Image | Pixels, Image.Exif]:
    """Decode an open image as sRGB, with alpha if it is transparent, and read its EXIF.

    Returns:
        The pixels, as an image or an array (H, W, 3 or 4), always an array above 8 bits; and the EXIF.
    """
    deep = decode_deep(file, image)
    if deep is None:
        image.load()
    exif = read_exif(image, notes)
    if (converted := convert_to_srgb(image if deep is None else deep, profile_of(image, exif), notes)) is not None:
        return converted, exif
    if deep is not None:
        return as_rgb(deep), exif
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode), exif  # convert would copy it


def decode_deep(file: IO[bytes], image: ImageFile) -> NDArray[np.uint16] | None:
    """Decode 9 to 16 bits per channel of a PNG, TIFF, JPEG 2000, or gray PPM; return None for anything else.

    Returns:
        (H, W, 1 to 4): gray or RGB, and alpha if there is any, up to 65535.

    Raises:
        ValueError: if its values have no defined range.
    """
    if isinstance(image, TiffImageFile):
        return decode_deep_tiff(file, image) if max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8 else None
    if image.format == "PNG" and ";16" in str(image.tile):  # describes the encoded data, such as "RGB;16B"
        import imagecodecs

        file.seek(0)
        pixels, depth = imagecodecs.png_decode(png.only(png.PIXELS, file.read())), 16
    elif image.format == "JPEG2000" and (depth := jpeg_2000_depth(file)) > 8:  # Pillow would wrap white around to black
        import imagecodecs

        file.seek(0)
        pixels = imagecodecs.jpeg2k_decode(file.read())
    elif image.mode.startswith(("I", "F")):
        if image.format != "PPM" or image.mode == "F":
            raise Unfit(NO_RANGE)
        pixels, depth = np.asarray(image), 16  # to which Pillow scales them
    else:
        return None
    return full_range(pixels.reshape(*pixels.shape[:2], -1), depth)


def jpeg_2000_depth(file: IO[bytes]) -> int:
    """Return the bits of the first channel (ISO/IEC 15444-1, A.5.1), and 128 more if it is signed."""
    file.seek(0)
    content = file.read()
    return content[content.index(b"\xff\x4f\xff\x51") + 42] + 1


def full_range(pixels: NDArray[Any], depth: int) -> NDArray[np.uint16]:
    """Scale values of up to 16 bits so that white is 65535."""
    if depth > 16:
        raise Unfit(NO_RANGE)
    scaled = pixels if depth == 16 else (pixels * np.float32(FULL / (2**depth - 1))).round()
    return scaled.astype(np.uint16)


def decode_deep_tiff(file: IO[bytes], image: TiffImageFile) -> NDArray[np.uint16]:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it raises says enough
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[image.tell()]
        photometric, alpha = page.photometric, page.extrasamples[:1]
        if page.sampleformat != 1 or photometric > 2:  # signed or floating-point, or not gray or RGB
            raise Unfit(NO_RANGE)
        if page.imagedepth != 1 or sorted((page.imagewidth, page.imagelength)) != sorted(image.size):
            raise Unfit("a volume, not a picture")
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
    num_colors = 3 if photometric == 2 else 1
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., : num_colors + (alpha != (0,))]
    pixels = full_range(pixels, page.bitspersample)
    if photometric == 0:
        pixels = np.concatenate([FULL - pixels[..., :1], pixels[..., 1:]], axis=2)
    if alpha == (1,):  # premultiplied
        opacity = pixels[..., -1:].astype(np.float32).clip(1) / FULL
        pixels[..., :-1] = (pixels[..., :-1] / opacity).round().clip(0, FULL)
    return pixels


def upright(pixels: Pixels, exif: Image.Exif) -> Pixels:
    """Turn and mirror pixels (H, W, ...) as EXIF says; once Pillow has decoded a TIFF, it no longer says anything."""
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def read_exif(image: Image.Image, notes: Notes) -> Image.Exif:
    """Return an image's EXIF, empty if it is damaged."""
    try:
        return image.getexif()
    except Exception:  # a broken header raises all sorts of errors, and the picture is worth more than its metadata
        notes["damage"] = "damaged EXIF left out"
        return Image.Exif()
