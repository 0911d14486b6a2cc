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
# a TIFF's tags that say how it was stored, which changes; all others describe the picture
STORAGE = {254, 255, *range(256, 267), 273, 274, *range(277, 285), *range(288, 294), 296, 297, 301}
STORAGE |= {*range(317, 326), 330, *range(338, 348), *range(512, 522), *range(529, 533), 34675}
POINTERS = {34665, 34853, 34377}  # to EXIF and GPS, which would lead astray, and Photoshop's data, with previews
KNOWN_AS = {"exif": "EXIF", "xmp": "XMP", "extra": "IPTC", "dpi": "resolution", "pnginfo": "texts", "extratags": "tags"}
COPIES = {f"Raw profile type {kind}" for kind in ("exif", "APP1", "icc", "icm")}  # by ImageMagick, among a PNG's texts
XMP_ORIENTATION = re.compile(rb'tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>')
XMP_IN_PNG = "XML:com.adobe.xmp"  # the keyword of its chunk
XMP, X_RESOLUTION, RESOLUTION_UNIT = 700, 282, 296  # a TIFF's tags
RATIONAL = {5: "I", 10: "i"}  # a TIFF's types of pairs of whole numbers
CAPTION = 0x0404  # the part of a Photoshop segment that holds IPTC: captions and credits

Pixels = NDArray[Any]  # (H, W, 3 or 4), np.uint8 or np.uint16: RGB, and alpha if there is any
Notes = dict[str, str]  # what a user should know about an image, under "profile", "page", "damage", or "lost"


class Picture(NamedTuple):
    pixels: Pixels
    format: str  # a key of FORMATS
    metadata: dict[str, Any]  # see metadata_of
    notes: Notes


def written_as(path: Path, image: ImageFile) -> str:
    """Return the key of FORMATS for writing an image read from ``path``: its own format if possible, else PNG."""
    name = "JPEG" if image.format == "MPO" else image.format or ""
    return name if name in FORMATS and keeps_name(path) else "PNG"


def keeps_name(path: Path) -> bool:
    """Whether a file of this name keeps its format; all others become PNGs."""
    return Image.registered_extensions().get(suffix(path)) in FORMATS


def metadata_of(file: IO[bytes], image: ImageFile, exif: Image.Exif, name: str, notes: Notes) -> dict[str, Any]:
    """Return the metadata of a loaded image that remains true once it is upright and sRGB, as Pillow's options.

    This includes resolution, XMP, IPTC captions, comments, a PNG's texts, and EXIF without orientation, preview, and
    maker notes; a TIFF's are options of tifffile. A note names what cannot be written, because it is too long, say.
    """
    options, lost = dict[str, Any](), list[str]()
    if not isinstance(image, TiffImageFile):
        options, lost = described_in(image, exif, name), beyond_pillow(image)
    else:
        try:
            options, lost = described_by_tags(file, image) if name == "TIFF" else ({}, ["tags"])
        except Exception:  # damaged tags raise all sorts of errors
            lost = ["tags"]
    if has_resolution(image, exif):
        options["dpi"] = image.info["dpi"]
    for option, value in list(options.items()):
        try:
            encode(Picture(np.zeros((1, 1, 3), np.uint8), name, {option: value}, {}), io.BytesIO())
        except Exception:  # wrong types and sizes raise all sorts of errors
            del options[option]
            lost.append(KNOWN_AS.get(option, option))
    if lost:
        notes["lost"] = f"written without its {' and '.join(lost)}"
    return options


def has_resolution(image: ImageFile, exif: Image.Exif) -> bool:
    """Whether a file says how large its pixels are; if a TIFF or JPEG does not, Pillow assumes 1 or 72 dpi."""
    says: object
    if isinstance(image, TiffImageFile):
        says = X_RESOLUTION in image.tag_v2 and image.tag_v2.get(RESOLUTION_UNIT, 2) != 1  # that is none; 2 is inch
    else:
        says = image.format not in ("JPEG", "MPO") or image.info.get("jfif_unit") or X_RESOLUTION in exif
    return bool(says) and "dpi" in image.info


def described_in(image: ImageFile, exif: Image.Exif, name: str) -> dict[str, Any]:
    """Return what EXIF, XMP, IPTC, comments and texts say about a picture, not about how it was stored."""
    info, options = image.info, dict[str, Any]()
    exif.pop(ExifTags.Base.Orientation, None)
    with suppress(Exception):  # damaged details raise all sorts of errors; they are left as they are
        groups = [exif, *(exif.get_ifd(ifd) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) if ifd in exif)]
        for group in groups:
            group.pop(ExifTags.IFD.MakerNote, None)  # holds file offsets, which would be wrong
            group.pop(ExifTags.IFD.Interop, None)  # marks Adobe RGB
            if ExifTags.Base.ColorSpace in group:
                group[ExifTags.Base.ColorSpace] = 1  # sRGB
            for tag, value in list(group.items()):
                if isinstance(value, str) and not value.isascii():  # Pillow reads Latin-1, but would write ASCII
                    group[tag] = value.encode("latin-1")
    if exif:
        options["exif"] = exif
    if "comment" in info:
        options["comment"] = info["comment"]
    if isinstance(info.get("xmp"), bytes):
        options["xmp"] = XMP_ORIENTATION.sub(b"", info["xmp"])
    if isinstance(info.get("photoshop"), dict) and CAPTION in info["photoshop"]:
        options["extra"] = photoshop_segment(CAPTION, info["photoshop"][CAPTION])
    if name == "PNG":
        options["pnginfo"] = texts = PngInfo()
        for key, text in getattr(image, "text", {}).items():
            if key not in COPIES | {XMP_IN_PNG}:
                texts.add_text(key, text)
        if isinstance(comment := options.pop("comment", None), bytes):
            texts.add_text("Comment", comment.decode(errors="replace"))
        if "xmp" in options:
            texts.add_itxt(XMP_IN_PNG, options.pop("xmp").decode(errors="replace"))
    return options


def beyond_pillow(image: ImageFile) -> list[str]:
    """Return the names of what a JPEG holds that Pillow drops when it reads the file."""
    segments = getattr(image, "applist", [])
    lost = ["first comments"] if [kind for kind, _ in segments].count("COM") > 1 else []
    if any(content.startswith(b"http://ns.adobe.com/xmp/extension/") for _, content in segments):
        lost.append("extended XMP")
    return lost


def described_by_tags(file: IO[bytes], image: TiffImageFile) -> tuple[dict[str, Any], list[str]]:
    """Return a TIFF's tags that describe the picture, as tifffile's options, and the names of those that must go."""
    import tifffile

    tags, lost = [], []
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[image.tell()]
        for tag in page.tags:
            file.seek(tag.valueoffset)
            value: Any = file.read(tag.valuebytecount)  # as it is: tifffile and Pillow interpret texts differently
            if tag.code == XMP:
                value = XMP_ORIENTATION.sub(lambda found: b" " * len(found[0]), value)
            if tag.dtype in RATIONAL:  # which tifffile does not take as bytes
                value = struct.unpack(f"{tiff.byteorder}{2 * tag.count}{RATIONAL[tag.dtype]}", value)
            if tag.code in POINTERS:
                lost.append(tag.name)
            elif tag.code not in STORAGE:
                tags.append((tag.code, tag.dtype, tag.count, value, True))
    return {"byteorder": tiff.byteorder, "extratags": tags}, lost


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
        encode(picture, file)


def encode(picture: Picture, file: IO[bytes]) -> None:
    if picture.format == "TIFF":
        encode_tiff(picture, file)
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


def encode_tiff(picture: Picture, file: IO[bytes]) -> None:
    import tifffile

    options = dict(picture.metadata)
    tifffile.imwrite(
        file,
        picture.pixels,
        photometric="rgb",
        extrasamples=["unassalpha"][: picture.pixels.shape[2] - 3],
        compression="zlib",
        predictor=True,
        resolutionunit="inch" if "dpi" in options else "none",
        resolution=options.pop("dpi", None),
        metadata=None,
        software=False,
        **options,
    )
