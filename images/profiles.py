"""Color profiles: what an image's numbers mean. All are converted to sRGB, which models and most programs expect."""

import io
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

SPACES = {b"GRAY": "gray", b"RGB ": "rgb", b"CMYK": "cmyk"}  # as a profile and as imagecodecs name them
INTENT, BLACK_POINT, NO_SHORTCUTS = 1, 0x2000, 0x0100  # in LittleCMS: relative colorimetric, and black stays black
ICC_PROFILE = 34675  # a TIFF's tag
Primaries = Sequence[float]  # x and y of red, green and blue
SRGB, ADOBE_RGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06), (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
D65 = (0.3127, 0.3290)
NUM_COLORS = {"gray": 1, "rgb": 3, "cmyk": 4}
TOLERANCE = 2  # levels of 255; a profile that changes no color by more is ignored


def profile_of(image: Image.Image, exif: Image.Exif) -> bytes:
    """Return an open image's ICC profile, or make one if its EXIF or PNG chunks call for it; otherwise empty."""
    # a TIFF's ``info`` may hold the profile of a different page
    profile = image.tag_v2.get(ICC_PROFILE) if isinstance(image, TiffImageFile) else image.info.get("icc_profile")
    if isinstance(profile, bytes):
        return profile
    with suppress(Exception):  # damaged EXIF raises all sorts of errors
        details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
        marks = exif.get_ifd(ExifTags.IFD.Interop) if ExifTags.IFD.Interop in details else {}
        if marks.get(1) == "R03" or details.get(ExifTags.Base.ColorSpace) == 2:
            return rgb_profile(256 / 563, ADOBE_RGB)  # the mark that cameras write instead of a profile
    if image.format != "PNG" or "srgb" in image.info or not image.info.get("gamma"):
        return b""
    gamma, chromaticity = image.info["gamma"], image.info.get("chromaticity") or (*D65, *SRGB)
    if np.allclose([gamma, *chromaticity], [1 / 2.2, *D65, *SRGB], atol=0.02):  # how older programs mark sRGB
        return b""
    return rgb_profile(gamma, chromaticity[2:], chromaticity[:2])


def rgb_profile(gamma: float, primaries: Primaries, white: Sequence[float] = D65) -> bytes:
    """Make a profile for RGB values that equal ``light ** gamma``."""
    import imagecodecs

    return imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=1 / gamma)


def convert_to_srgb(image: Image.Image | NDArray[Any], profile: bytes, notes: dict[str, str]) -> NDArray[Any] | None:
    """Convert a loaded image, or pixels (H, W, 1 to 4), to sRGB, and note what it was converted from.

    Returns:
        (H, W, 3 or 4): RGB in the same depth, and alpha if there is any; None if there is nothing to convert.
    """
    if not profile:
        return None
    try:
        space = SPACES[profile[16:20]]
        if not changes_colors(profile, space):
            return None
        colors, alpha = split(image, space)
        converted = transform(colors, profile, space)
        name = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.profile_description
    except (KeyError, RuntimeError, OSError):  # KeyError: an unsuitable color space; the others: damaged
        notes["damage"] = "unusable color profile left out"
        return None
    notes["profile"] = f"converted to sRGB from {repr(name.strip()) if name else 'an unnamed color profile'}"
    return np.concatenate([converted, alpha], axis=2)


def split(image: Image.Image | NDArray[Any], space: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an image's colors (H, W, 1, 3 or 4) in the space of its profile, and its alpha (H, W, 0 or 1).

    Raises:
        KeyError: if its colors are in a different space.
    """
    if isinstance(image, np.ndarray):
        own_space = "gray" if image.shape[2] < 3 else "rgb"
    else:
        own_space = {"1": "gray", "L": "gray", "LA": "gray", "CMYK": "cmyk", "LAB": "lab"}.get(image.mode, "rgb")
    if (own_space, space) not in (("gray", "gray"), ("gray", "rgb"), ("rgb", "rgb"), ("cmyk", "cmyk")):
        raise KeyError(space)
    if isinstance(image, np.ndarray):
        pixels = as_rgb(image) if space == "rgb" else image
    else:
        mode = {"gray": "L", "rgb": "RGB", "cmyk": "CMYK"}[space] + ("A" if image.has_transparency_data else "")
        pixels = np.atleast_3d(np.asarray(image.convert(mode)))
    return pixels[..., : NUM_COLORS[space]], pixels[..., NUM_COLORS[space] :]


def as_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn gray, with or without alpha, into RGB."""
    num_channels = pixels.shape[2]
    return pixels if num_channels > 2 else pixels[..., [0, 0, 0, 1][: num_channels + 2]]


@lru_cache(maxsize=64)  # the files of a folder often share one
def changes_colors(profile: bytes, space: str) -> bool:
    """Return whether converting from a profile to sRGB changes colors by more than TOLERANCE; CMYK always counts.

    Raises:
        RuntimeError: if it is damaged.
    """
    colors = np.array(list(itertools.product(range(0, 256, 51), repeat=NUM_COLORS[space])), np.uint8)[None]
    changed = transform(colors, profile, space)
    return space == "cmyk" or bool(np.abs(changed.astype(int) - colors).max() > TOLERANCE)


def transform(colors: NDArray[Any], profile: bytes, space: str) -> NDArray[Any]:
    """Convert (H, W, 1, 3 or 4), uint8 or uint16, to sRGB (H, W, 3).

    Raises:
        RuntimeError: if the profile is damaged.
    """
    import imagecodecs

    def convert(colors: NDArray[Any], flags: int) -> NDArray[Any]:
        return imagecodecs.cms_transform(
            np.ascontiguousarray(colors),
            profile,
            imagecodecs.cms_profile("srgb"),
            colorspace=space,
            outcolorspace="rgb",
            intent=INTENT,
            flags=flags,
        )

    if space != "gray":
        return convert(colors, BLACK_POINT)
    # LittleCMS's shortcuts would halve dark grays; without them it is slow, so each level is converted only once
    levels = np.arange(np.iinfo(colors.dtype).max + 1, dtype=colors.dtype)[None]
    return convert(levels, BLACK_POINT | NO_SHORTCUTS)[0, colors[..., 0]]
