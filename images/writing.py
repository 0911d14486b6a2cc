"""Write images in the format they came in, if possible, with their metadata."""

import io
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from images import png
from images.files import suffix
from system.atomic import writing

FORMATS: dict[str, dict[str, Any]] = {  # what can be written, with Pillow's options
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "WEBP": {"quality": 95},
    "BMP": {},
    "TIFF": {},
}
TIFF_TAGS = (  # those that describe the picture, not how it was stored
    ExifTags.Base.DocumentName,
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.PageName,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
    700,  # XMP
    33723,  # IPTC
)
KNOWN_AS = {"exif": "EXIF", "xmp": "XMP", "extra": "IPTC", "dpi": "resolution", "pnginfo": "texts"}  # Pillow's options
XMP_ORIENTATION = re.compile(rb'tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>')
XMP_IN_PNG = "XML:com.adobe.xmp"  # the keyword of its chunk
CAPTION = 0x0404  # the part of a Photoshop segment that holds IPTC: captions and credits

Pixels = NDArray[Any]  # (H, W, 3 or 4), np.uint8 or np.uint16: RGB, and alpha if there is any
Notes = dict[str, str]  # what a user should know about an image, under "profile", "page", "damage", or "lost"


class Picture(NamedTuple):
    pixels: Pixels
    format: str  # a key of FORMATS
    metadata: dict[str, Any]  # as Pillow's options for saving
    notes: Notes


def written_as(path: Path, image: ImageFile) -> str:
    """Return the key of FORMATS for writing an image read from ``path``: its own format if possible, else PNG."""
    name = "JPEG" if image.format == "MPO" else image.format or ""
    return name if name in FORMATS and keeps_name(path) else "PNG"


def keeps_name(path: Path) -> bool:
    """Whether a file of this name keeps its format; all others become PNGs."""
    return Image.registered_extensions().get(suffix(path)) in FORMATS


def metadata_of(image: ImageFile, exif: Image.Exif, name: str, notes: Notes) -> dict[str, Any]:
    """Return the metadata of a loaded image that remains true once it is upright and sRGB, as Pillow's options.

    This includes resolution, XMP, IPTC captions, comments, a PNG's texts, and EXIF without orientation, preview, and
    maker notes. A note names what cannot be written, for example because it is too long.
    """
    info, options, lost = image.info, dict[str, Any](), []
    if isinstance(image, TiffImageFile):
        if ExifTags.IFD.Exif in exif or ExifTags.IFD.GPSInfo in exif:
            lost.append("camera data")
        for tag in exif.keys() - set(TIFF_TAGS):
            del exif[tag]
    exif.pop(ExifTags.Base.Orientation, None)
    if ExifTags.IFD.Exif in exif:
        with suppress(Exception):  # damaged details raise all sorts of errors; they are left as they are
            details = exif.get_ifd(ExifTags.IFD.Exif)
            details.pop(ExifTags.IFD.MakerNote, None)  # holds file offsets, which would be wrong
            details.pop(ExifTags.IFD.Interop, None)  # marks Adobe RGB
            if ExifTags.Base.ColorSpace in details:
                details[ExifTags.Base.ColorSpace] = 1  # sRGB
    if exif:
        options["exif"] = exif
    options |= {key: info[key] for key in ("dpi", "comment") if key in info}
    if isinstance(info.get("xmp"), bytes):
        options["xmp"] = XMP_ORIENTATION.sub(b"", info["xmp"])
    if isinstance(info.get("photoshop"), dict) and CAPTION in info["photoshop"]:
        options["extra"] = photoshop_segment(CAPTION, info["photoshop"][CAPTION])
    if name == "PNG":
        options["pnginfo"] = PngInfo()
        for key, text in getattr(image, "text", {}).items():
            if key != XMP_IN_PNG and not key.startswith("Raw profile"):  # ImageMagick's copy of EXIF, say
                options["pnginfo"].add_text(key, text)
        if "xmp" in options:
            options["pnginfo"].add_itxt(XMP_IN_PNG, options.pop("xmp").decode(errors="replace"))
    for option, value in list(options.items()):
        try:
            Image.new("RGB", (1, 1)).save(io.BytesIO(), name, **{option: value})
        except Exception:  # wrong types and sizes raise all sorts of errors
            del options[option]
            lost.append(KNOWN_AS.get(option, option))
    if lost:
        notes["lost"] = f"written without its {' and '.join(lost)}"
    return options


def photoshop_segment(resource: int, content: bytes) -> bytes:
    """Make the JPEG segment in which Photoshop keeps a resource (Adobe's Photoshop File Formats Specification)."""
    block = b"8BIM" + struct.pack(">HHI", resource, 0, len(content)) + content + b"\0" * (len(content) % 2)
    return b"\xff\xed" + struct.pack(">H", 2 + 14 + len(block)) + b"Photoshop 3.0\0" + block


def write(picture: Picture, path: Path) -> None:
    """Write a file whole or not at all, replacing an old one.

    Raises:
        PigmentError: if it cannot be written.
    """
    with writing(path) as file:
        if picture.format == "TIFF":
            write_tiff(picture, file)
        elif picture.pixels.dtype == np.uint16:
            file.write(deep_png(picture))
        else:
            Image.fromarray(picture.pixels).save(file, picture.format, **FORMATS[picture.format], **picture.metadata)


def deep_png(picture: Picture) -> bytes:
    """Encode 16 bits, which Pillow cannot; the metadata is copied from a one-pixel PNG that it encodes."""
    import imagecodecs

    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG", **picture.metadata)
    return png.with_metadata(bytes(imagecodecs.png_encode(np.ascontiguousarray(picture.pixels))), pixel.getvalue())


def write_tiff(picture: Picture, file: IO[bytes]) -> None:
    import tifffile

    exif = picture.metadata.get("exif", Image.Exif())
    tags = {tag: exif[tag] for tag in TIFF_TAGS if isinstance(exif.get(tag), str | bytes)}
    tifffile.imwrite(
        file,
        picture.pixels,
        photometric="rgb",
        extrasamples=["unassalpha"][: picture.pixels.shape[2] - 3],
        compression="zlib",
        predictor=True,
        resolution=picture.metadata.get("dpi"),
        resolutionunit="inch",
        metadata=None,
        software=False,
        extratags=[
            (tag, 2, 0, value.encode(), True) if isinstance(value, str) else (tag, 1, len(value), value, True)
            for tag, value in tags.items()
        ],
    )
