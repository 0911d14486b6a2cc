import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.color import lab2xyz

from images.reading import read, read_square

SIZE = 24
RAMP = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
COLOR = np.stack([RAMP, RAMP.T, 1 - RAMP], axis=-1)
ALPHA = np.concatenate([COLOR, RAMP[..., None] > 0.5], axis=-1)
ON_WHITE = 1 - ALPHA[..., 3:] * (1 - COLOR)


def pillow(pixels: np.ndarray | Image.Image, name: str, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.convert(mode or image.mode).save(file, name, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, photometric: str = "minisblack", **more: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **more)
    return file.getvalue()


def bits(values: np.ndarray, number: int) -> np.ndarray:
    return (values * (2**number - 1)).round().astype(np.uint8 if number == 8 else np.uint16)


def deep_png(values: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(bits(values, 16)))


def with_chunk(content: bytes, kind: bytes, body: bytes, before: bytes = b"IDAT", checksum: int | None = None) -> bytes:
    """Insert a chunk into a PNG."""
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    at = content.index(before) - 4
    return content[:at] + chunk + content[at:]


def jpeg_2000(values: np.ndarray, number: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(bits(values, number), bitspersample=number, reversible=True, level=0))


TIMES_ALPHA = np.concatenate([ALPHA[..., 3:] * COLOR, ALPHA[..., 3:]], axis=-1)
READ: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {  # how each is written, and what is in it
    "gray.png": (lambda: pillow(bits(RAMP, 8), "PNG"), RAMP),
    "bilevel.png": (lambda: pillow(bits(RAMP, 8) > 127, "PNG"), RAMP > 0.5),
    "alpha.png": (lambda: pillow(bits(ALPHA, 8), "PNG"), ON_WHITE),
    "8 bits, white is 0.tif": (lambda: tiff(bits(1 - RAMP, 8), "miniswhite"), RAMP),
    "8 bits, times alpha.tif": (
        lambda: tiff(bits(TIMES_ALPHA, 8), "rgb", extrasamples=["assocalpha"]),
        ON_WHITE,
    ),
    "10 bits.tif": (lambda: tiff(bits(RAMP, 10), bitspersample=10), RAMP),
    "12 bits.tif": (lambda: tiff(bits(RAMP, 12), bitspersample=12), RAMP),
    "12 bits, color.tif": (lambda: tiff(bits(COLOR, 12), "rgb", bitspersample=12), COLOR),
    "12 bits, white is 0.tif": (lambda: tiff(bits(1 - RAMP, 12), "miniswhite", bitspersample=12), RAMP),
    "16 bits.png": (lambda: deep_png(RAMP), RAMP),
    "16 bits, color.png": (lambda: deep_png(COLOR), COLOR),
    "16 bits, alpha.png": (lambda: deep_png(ALPHA), ON_WHITE),
    "16 bits, one transparent level.png": (
        lambda: with_chunk(deep_png(RAMP), b"tRNS", struct.pack(">H", 0)),
        np.where(RAMP == 0, 1, RAMP),
    ),
    "16 bits.tif": (lambda: tiff(bits(RAMP, 16)), RAMP),
    "16 bits, color.tif": (lambda: tiff(bits(COLOR, 16), "rgb"), COLOR),
    "16 bits, alpha.tif": (lambda: tiff(bits(ALPHA, 16), "rgb", extrasamples=["unassalpha"]), ON_WHITE),
    "16 bits, gray, alpha.tif": (
        lambda: tiff(bits(ALPHA[..., 2:], 16), extrasamples=["unassalpha"]),
        ON_WHITE[..., 2:],
    ),
    "16 bits, no alpha.tif": (lambda: tiff(bits(ALPHA, 16), "rgb", extrasamples=["unspecified"]), COLOR),
    "16 bits, times alpha.tif": (lambda: tiff(bits(TIMES_ALPHA, 16), "rgb", extrasamples=["assocalpha"]), ON_WHITE),
    "16 bits, white is 0.tif": (lambda: tiff(bits(1 - RAMP, 16), "miniswhite"), RAMP),
    "16 bits, planes.tif": (lambda: tiff(bits(COLOR, 16).transpose(2, 0, 1), "rgb", planarconfig=2), COLOR),
    "16 bits, compressed.tif": (lambda: tiff(bits(COLOR, 16), "rgb", compression="lzw", predictor=True), COLOR),
    "16 bits.jp2": (lambda: pillow(bits(RAMP, 16), "JPEG2000"), RAMP),
    "12 bits.jp2": (lambda: jpeg_2000(RAMP, 12), RAMP),
    "10 bits, color.jp2": (lambda: jpeg_2000(COLOR, 10), COLOR),
    "16 bits, color.j2k": (lambda: jpeg_2000(COLOR, 16), COLOR),
    "16 bits.pgm": (lambda: b"P5 24 24 65535\n" + bits(RAMP, 16).astype(">u2").tobytes(), RAMP),
    "12 bits.pgm": (lambda: b"P5 24 24 4095\n" + bits(RAMP, 12).astype(">u2").tobytes(), RAMP),
    "color.avif": (lambda: pillow(bits(COLOR, 8), "AVIF", quality=100, subsampling="4:4:4"), COLOR),
    "color.jp2": (lambda: pillow(bits(COLOR, 8), "JPEG2000"), COLOR),
    "color.jfif": (lambda: pillow(bits(COLOR, 8), "JPEG", quality=100, subsampling=0), COLOR),
    "color.jpe": (lambda: pillow(bits(COLOR, 8), "JPEG", quality=100, subsampling=0), COLOR),
    "color.tga": (lambda: pillow(bits(COLOR, 8), "TGA"), COLOR),
}
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {  # how each is written, and why it cannot be read
    "signed.tif": (lambda: tiff(bits(RAMP, 8).astype(np.int16)), "not gray or RGB"),
    "float.tif": (lambda: tiff(RAMP.astype(np.float32)), "not gray or RGB"),
    "32 bits.tif": (lambda: tiff(bits(RAMP, 16).astype(np.uint32)), "not gray or RGB"),
    "16 bits, inks.tif": (lambda: tiff(bits(ALPHA, 16), "separated"), "not gray or RGB"),
    "volume.tif": (lambda: tiff(bits(np.stack([RAMP] * 16), 16), volumetric=True, tile=(16, 16, 16)), "a volume"),
    "half.png": (lambda: pillow(bits(COLOR, 8), "PNG")[:-100], "truncated"),
    "half, 16 bits.png": (lambda: deep_png(RAMP)[:400], "input stream too small"),
    "half, 16 bits.tif": (lambda: tiff(bits(COLOR, 16), "rgb")[:-100], "failed to read"),
    "text.png": (lambda: b"I am no image", "cannot identify"),
    "postscript.jpg": (lambda: pillow(bits(COLOR, 8), "EPS"), "cannot identify"),
}


def both(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Return the pixels for use and for training, from 0 to 1 and on white, and the notes, which both share."""
    path.write_bytes(content)
    picture, (square, notes) = read(path), read_square(content, SIZE)
    assert {name: note for name, note in picture.notes.items() if name != "lost"} == notes
    pixels = picture.pixels / np.iinfo(picture.pixels.dtype).max
    return 1 - (1 if pixels.shape[2] == 3 else pixels[..., 3:]) * (1 - pixels[..., :3]), square / 255, notes


@pytest.mark.parametrize("name", READ)
def test_training_and_use_see_what_is_in_a_file(name: str, tmp_path: Path) -> None:
    written, expected = READ[name]
    used, trained, notes = both(written(), tmp_path / name)
    expected = expected if expected.ndim == 3 else expected[..., None]
    tolerance = 0.03 if name in ("color.avif", "color.jfif", "color.jpe") else 0.6 / 255
    assert (np.abs(used - expected).max() <= tolerance, np.abs(trained - expected).max() <= tolerance) == (True, True)
    assert notes == {}


@pytest.mark.parametrize("name", REFUSED)
def test_training_and_use_refuse_a_file_for_the_same_reason(name: str, tmp_path: Path) -> None:
    written, why = REFUSED[name]
    path, said = tmp_path / name, []
    path.write_bytes(written())
    for reader in (lambda: read(path), lambda: read_square(path.read_bytes(), SIZE)):
        with pytest.raises((ValueError, OSError), match=why) as refusal:
            reader()
        said.append(str(refusal.value).partition("<")[0].partition("'")[0])
    assert said[0] == said[1]


def test_a_large_photograph_keeps_the_detail_that_its_training_image_has_room_for() -> None:
    detail = np.random.default_rng(0).integers(0, 255, (2 * SIZE, 2 * SIZE), np.uint8).repeat(2, 0).repeat(2, 1)
    square, _ = read_square(pillow(detail, "JPEG", quality=95), SIZE)
    expected = Image.fromarray(detail).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.abs(square[..., 0] - np.asarray(expected).astype(int)).mean() < 3


@pytest.mark.parametrize("name", ["a.heic", "a.DNG", "a.svg"])
def test_formats_that_are_not_read_are_refused_unopened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(tiff(bits(COLOR, 8), "rgb"))  # like the preview in a raw file, it would open
    with pytest.raises(ValueError, match="files are not read; save this one as JPEG, PNG, or TIFF"):
        read(tmp_path / name)


def test_the_largest_page_of_a_tiff_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        pages.write(bits(COLOR[::4, ::4], 8), photometric="rgb", iccprofile=GAMMA_1)  # a preview, with a profile
        pages.write(np.zeros((50, 50), np.complex64))  # not an image
        pages.write(bits(COLOR, 16), photometric="rgb")
        pages.write(bits(1 - COLOR, 8), photometric="rgb")  # just as large
    used, trained, notes = both(file.getvalue(), tmp_path / "pages.tif")
    assert notes == {"page": "only page 3 of 4, the largest"}
    assert max(np.abs(used - COLOR).max(), np.abs(trained - COLOR).max()) < 0.6 / 255


def test_pages_before_a_damaged_one_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        for _ in range(2):
            pages.write(bits(COLOR, 8), photometric="rgb")
    content = bytearray(file.getvalue())
    (start,) = struct.unpack_from("<I", content, 4)
    following = start + 2 + 12 * struct.unpack_from("<H", content, start)[0]  # where the next page's offset is stored
    struct.pack_into("<I", content, following, len(content) - 1)
    used, trained, _ = both(bytes(content), tmp_path / "pages.tif")
    assert max(np.abs(used - COLOR).max(), np.abs(trained - COLOR).max()) < 0.6 / 255


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_read(name: str, tmp_path: Path) -> None:
    others = [Image.fromarray(bits(ramp, 8)).convert("RGB") for ramp in (1 - RAMP, RAMP.T)]
    frames = pillow(bits(RAMP, 8), name, "RGB", save_all=True, append_images=others, lossless=True)
    used, _, notes = both(frames, tmp_path / "moving")
    assert notes == {"page": "only frame 1 of 3"}
    assert np.abs(used - RAMP[..., None]).max() < 2 / 255


def test_a_photograph_with_extras_gets_no_note(tmp_path: Path) -> None:
    photograph = pillow(bits(COLOR, 8), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=100)
    assert both(photograph, tmp_path / "a.jpg")[2] == {}


SRGB, ADOBE_RGB, DISPLAY_P3 = (
    (0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
    (0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
    (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
)
WHITE = (0.3127, 0.3290)
GAMMA_1 = imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=SRGB, gamma=1.0)
MUTED = 0.3 + 0.4 * COLOR  # within sRGB whatever the primaries


def to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """The matrix from linear RGB to CIE XYZ, by its definition: full red, green and blue add up to white."""
    columns = [(x / y, 1, (1 - x - y) / y) for x, y in (*np.reshape(primaries, (3, 2)), WHITE)]
    *primary, white = np.array(columns)
    return np.array(primary).T * np.linalg.solve(np.array(primary).T, white)


def encode(srgb: np.ndarray, primaries: tuple[float, ...], gamma: float) -> np.ndarray:
    """Write colors given in sRGB (IEC 61966-2-1) as another RGB."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return (linear @ (np.linalg.inv(to_xyz(primaries)) @ to_xyz(SRGB)).T).clip(0, 1) ** (1 / gamma)


def rgb_profile(primaries: tuple[float, ...], gamma: float) -> bytes:
    return imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=primaries, gamma=gamma)


def gray_profile(gamma: float) -> bytes:
    return imagecodecs.cms_profile("gray", whitepoint=WHITE, gamma=gamma)


def cmyk_profile() -> bytes:
    """Make a profile for four inks from a table of their 16 mixtures (ICC.1:2001-04)."""
    mixtures = np.array(list(np.ndindex(2, 2, 2, 2)))
    lightness = 10 + 90 * (1 - mixtures[:, 3]) * (1 - mixtures[:, :3].sum(axis=1) / 3)  # ink is never quite black
    lab = np.stack([lightness * 2.55, *[np.full(16, 128.0)] * 2], axis=-1).round().astype(np.uint8)
    identity = np.eye(3).ravel() * 65536
    straight = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *identity.astype(int).tolist())
    table += 4 * straight + lab.tobytes() + 3 * straight
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    size = 168 + len(table) + len(white)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"scnr", b"CMYK", b"Lab ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    table_at = (168, len(table))  # for every intent
    tags = struct.pack(">I4s2I4s2I4s2I", 3, b"A2B0", *table_at, b"A2B1", *table_at, b"wtpt", sum(table_at), len(white))
    return header.ljust(128, b"\0") + tags + table + white


def adobe_exif(interoperability: str, color_space: int) -> Image.Exif:
    """The marks of cameras that write no profile."""
    exif = Image.Exif()
    exif[0x8769] = {0xA001: color_space, 0xA005: {1: interoperability}}
    return exif


def chroma(colors: np.ndarray, gamma: float) -> bytes:
    """Make a PNG that gives its primaries and gamma in chunks, not in a profile."""
    content = pillow(bits(encode(colors, ADOBE_RGB, gamma), 8), "PNG")
    numbers = [round(100_000 * number) for number in (*WHITE, *ADOBE_RGB)]
    content = with_chunk(content, b"cHRM", struct.pack(">8I", *numbers))
    return with_chunk(content, b"gAMA", struct.pack(">I", round(100_000 / gamma)))


def from_black(lightness: np.ndarray) -> np.ndarray:
    """CIE L* in sRGB, where light is stretched so that the darkest is black."""
    light = lab2xyz(lightness[..., None] * (1, 0, 0))[..., 1:2]
    stretched = (light - light.min()) / (1 - light.min())
    return np.where(stretched <= 0.0031308, 12.92 * stretched, 1.055 * stretched ** (1 / 2.4) - 0.055).repeat(3, axis=2)


LEVELS = MUTED[..., :1].repeat(3, axis=2)
PROFILES: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {  # how each is written, and its colors in sRGB
    "Adobe RGB.png": (
        lambda: pillow(bits(encode(MUTED, ADOBE_RGB, 2.2), 8), "PNG", icc_profile=rgb_profile(ADOBE_RGB, 2.2)),
        MUTED,
    ),
    "Display P3.webp": (
        lambda: pillow(
            bits(encode(MUTED, DISPLAY_P3, 2.2), 8), "WEBP", lossless=True, icc_profile=rgb_profile(DISPLAY_P3, 2.2)
        ),
        MUTED,
    ),
    "Adobe RGB, by EXIF.webp": (
        lambda: pillow(
            bits(encode(MUTED, ADOBE_RGB, 563 / 256), 8), "WEBP", lossless=True, exif=adobe_exif("R03", 65535)
        ),
        MUTED,
    ),
    "Adobe RGB, by EXIF's color space.webp": (
        lambda: pillow(bits(encode(MUTED, ADOBE_RGB, 563 / 256), 8), "WEBP", lossless=True, exif=adobe_exif("R98", 2)),
        MUTED,
    ),
    "Adobe RGB, by chunks.png": (lambda: chroma(MUTED, 1.8), MUTED),
    "alpha.png": (
        lambda: pillow(
            bits(np.concatenate([encode(MUTED, ADOBE_RGB, 2.2), ALPHA[..., 3:]], axis=2), 8),
            "PNG",
            icc_profile=rgb_profile(ADOBE_RGB, 2.2),
        ),
        1 - ALPHA[..., 3:] * (1 - MUTED),
    ),
    "gray gamma 1.8.tif": (
        lambda: pillow(bits(encode(LEVELS, SRGB, 1.8)[..., 0], 8), "TIFF", icc_profile=gray_profile(1.8)),
        LEVELS,
    ),
    "gray with a color profile.png": (
        lambda: pillow(bits(encode(LEVELS, SRGB, 1.8)[..., 0], 8), "PNG", icc_profile=rgb_profile(SRGB, 1.8)),
        LEVELS,
    ),
    "inks.tif": (
        lambda: pillow(
            Image.merge("CMYK", [Image.new("L", (SIZE, SIZE))] * 3 + [Image.fromarray(bits(1 - RAMP, 8))]),
            "TIFF",
            icc_profile=cmyk_profile(),
        ),
        from_black(10 + 90 * RAMP),
    ),
    "16 bits, linear.tif": (
        lambda: tiff(bits(encode(COLOR, SRGB, 1.0), 16), "rgb", iccprofile=GAMMA_1),
        COLOR,
    ),
    "16 bits, linear gray.tif": (
        lambda: tiff(bits(encode(COLOR[..., :1].repeat(3, axis=2), SRGB, 1.0)[..., 0], 16), iccprofile=gray_profile(1)),
        COLOR[..., :1].repeat(3, axis=2),
    ),
}


@pytest.mark.parametrize("name", PROFILES)
def test_colors_with_a_profile_are_converted_to_srgb(name: str, tmp_path: Path) -> None:
    written, expected = PROFILES[name]
    used, trained, notes = both(written(), tmp_path / name)
    assert notes["profile"].startswith("converted to sRGB from ")
    tolerance = (0.6 if name.startswith("16 bits") else 2.5) / 255
    assert (np.abs(used - expected).max() < tolerance, np.abs(trained - expected).max() < tolerance) == (True, True)


WHOLE = pillow(bits(COLOR, 8), "PNG")
BOMB = b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(bytes(70_000_000))
DAMAGED = {  # PNGs whose metadata is too large or damaged
    "2 MB of text": with_chunk(WHOLE, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(2_000_000)),
    "2 MB of profile": pillow(bits(COLOR, 8), "PNG", icc_profile=imagecodecs.cms_profile("srgb") + bytes(2_000_000)),
    "a bomb of text": with_chunk(WHOLE, b"iTXt", BOMB),
    "a bomb of text behind the pixels": with_chunk(WHOLE, b"iTXt", BOMB, before=b"IEND"),
    "a bomb of text, 16 bits": with_chunk(deep_png(COLOR), b"iTXt", BOMB),
    "a wrong checksum": with_chunk(WHOLE, b"tEXt", b"Title\0A painting", checksum=0),
    "a short resolution": with_chunk(WHOLE, b"pHYs", b"\0"),
    "a profile compressed by an unknown method": with_chunk(WHOLE, b"iCCP", b"a\0\x07"),
    "an invalid profile": pillow(bits(COLOR, 8), "PNG", icc_profile=bytes(200)),
    "EXIF that is none": pillow(bits(COLOR, 8), "PNG", exif=b"Exif\0\0garbage"),
    "gray's profile": pillow(bits(COLOR, 8), "PNG", icc_profile=gray_profile(1.8)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_picture_is_read_despite_bad_metadata(what: str, tmp_path: Path) -> None:
    used, trained, notes = both(DAMAGED[what], tmp_path / "a.png")
    assert max(np.abs(used - COLOR).max(), np.abs(trained - COLOR).max()) <= 0.6 / 255
    assert list(notes) == ([] if what[0] == "2" else ["damage"])


def test_a_profile_is_used_despite_other_bad_metadata(tmp_path: Path) -> None:
    written, expected = PROFILES["Adobe RGB.png"]
    used, _, notes = both(with_chunk(written(), b"iTXt", BOMB), tmp_path / "a.png")
    assert (np.abs(used - expected).max() < 2.5 / 255, list(notes)) == (True, ["damage", "profile"])
