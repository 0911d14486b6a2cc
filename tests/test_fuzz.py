"""Thousands of damaged images, each of which training and use both read, or both refuse for the same reason."""

import collections
import faulthandler
import io
import itertools
import json
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from images.reading import read, read_square
from system.errors import reason

NUM_FILES, SIZE = 2400, 16
SECONDS = 10  # for one file; more is a hang
EXTREMES = (0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
TAGS = (254, 277, 284, 290, 317, 320, 330, 338, 339, 700, 32997, 33723, 34377, 34665, 34675)  # put in place of others
Y, X = np.mgrid[:48, :64]
COLORS = np.stack([4 * X, 5 * Y, 255 - 2 * X - Y], axis=-1).astype(np.uint8)


def pillow(name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLORS).save(file, name, **options)
    return file.getvalue()


def deep_tiff(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, COLORS.astype(np.uint16) * 257, photometric="rgb", predictor=True, **options)
    return file.getvalue()


def whole_files() -> dict[str, bytes]:
    """Return an image in each format, with much of what the format can hold."""
    profile = imagecodecs.cms_profile(
        "rgb", whitepoint=(0.3127, 0.3290), primaries=(0.64, 0.33, 0.21, 0.71, 0.15, 0.06), gamma=2.2
    )
    exif, texts = Image.Exif(), PngInfo()
    exif[0x010E], exif[0x0112] = "A caption", 6
    exif[0x8769], exif[0x8825] = {0x9003: "2020:01:01 00:00:00"}, {1: "N"}
    texts.add_text("Title", "A caption" * 30, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>" * 20)
    about: dict[str, Any] = {"exif": exif, "icc_profile": profile, "xmp": b"<x/>", "dpi": (300, 300)}
    turned = {"save_all": True, "append_images": [Image.fromarray(COLORS).rotate(90, expand=True)]}
    larger = {"save_all": True, "append_images": [Image.fromarray(COLORS).resize((96, 80))]}
    return {
        "jpg": pillow("JPEG", comment=b"A caption", **about),
        "png": pillow("PNG", pnginfo=texts, **about),
        "16.png": bytes(imagecodecs.png_encode(COLORS.astype(np.uint16) * 257)),
        "gif": pillow("GIF", **turned),
        "webp": pillow("WEBP", **about),
        "avif": pillow("AVIF", **about),
        "bmp": pillow("BMP"),
        "tif": pillow("TIFF", compression="tiff_adobe_deflate", icc_profile=profile, **larger),
        "16.tif": deep_tiff(compression="zlib", iccprofile=profile, description="A caption"),
        "jp2": pillow("JPEG2000"),
        "tga": pillow("TGA"),
        "ppm": pillow("PPM"),
    }


def damage(content: bytes, name: str, chance: random.Random) -> bytes:
    """Cut a file off, change some of its bytes, or change one of its tags."""
    how, file = chance.choice(("cut", "bytes", "tag")), bytearray(content)
    if how == "cut":
        return content[: chance.randrange(len(content))]
    if how == "bytes":
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            file[chance.randrange(len(file))] = chance.randrange(256)
        return bytes(file)
    extreme = chance.choice(EXTREMES)
    if name.endswith("tif"):  # a tag, or the type, count, or offset of its values
        (start,) = struct.unpack_from("<I", file, 4)
        entry = start + 2 + 12 * chance.randrange(*struct.unpack_from("<H", file, start))
        kind, at = chance.choice((("<H", 0), ("<H", 2), ("<I", 4), ("<I", 8)))
        value = extreme if at else chance.choice(TAGS)
        struct.pack_into(kind, file, entry + at, value & (0xFFFF if kind == "<H" else 0xFFFFFFFF))
    elif name.endswith("png"):  # a byte of a chunk, mostly with the right checksum
        start, length = chance.choice(list(png_chunks(content)))
        if length:
            file[start + 8 + chance.randrange(length)] = extreme & 0xFF
        checksum = zlib.crc32(file[start + 4 : start + 8 + length]) if chance.random() < 0.8 else 0
        struct.pack_into(">I", file, start + 8 + length, checksum)
    elif name == "jpg":  # the length of a segment, or a byte of it
        start, length = chance.choice(list(jpeg_segments(content)))
        if chance.random() < 0.4:
            struct.pack_into(">H", file, start + 2, extreme & 0xFFFF)
        else:
            file[start + 4 + chance.randrange(length - 2)] = extreme & 0xFF
    else:  # a number in the header
        struct.pack_into(chance.choice("<>") + "I", file, chance.randrange(min(200, len(file) - 4)), extreme)
    return bytes(file)


def png_chunks(content: bytes) -> Iterator[tuple[int, int]]:
    start = 8
    while start < len(content):
        (length,) = struct.unpack_from(">I", content, start)
        yield start, length
        start += 12 + length


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    start = 2
    while content[start + 1] != 0xDA:  # where the pixels begin
        (length,) = struct.unpack_from(">H", content, start + 2)
        yield start, length
        start += 2 + length


def judge(path: Path) -> tuple[str, str, float]:
    """Return why use and training refuse a file, empty if they read it, and how much the pixels differ."""
    said, results = list[str](), list[Any]()
    for reader in (lambda: read(path), lambda: read_square(path.read_bytes(), SIZE)):
        try:
            results.append(reader())
            said.append("")
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            said.append(reason(error))
    if any(said):
        return said[0], said[1], 0
    picture, (square, _) = results
    pixels = picture.pixels if picture.pixels.dtype == np.uint8 else (picture.pixels / 257).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    expected = ImageOps.fit(on_white, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return "", "", float(np.abs(np.asarray(expected).astype(int) - square).mean())


def main(folder: Path) -> None:
    """Judge all files, and print what was found."""
    whole = whole_files()
    verdicts, reasons, disagree = collections.Counter[str](), collections.Counter[str](), []
    for number, name in zip(range(NUM_FILES), itertools.cycle(whole)):
        path = folder / f"{number}.{name}"
        path.write_bytes(damage(whole[name], name, random.Random(number)))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        used, trained, difference = judge(path)
        faulthandler.cancel_dump_traceback_later()
        if "pixels, needs 8 x 8" in trained:  # only training refuses what is small
            verdicts["small"] += 1
        elif used != trained or difference > 3:  # read turns before scaling, read_square after
            disagree.append((path.name, used, trained, difference))
        else:
            verdicts["refused" if used else "read"] += 1
            reasons[used] += 1
        path.unlink()
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"verdicts": verdicts, "disagree": disagree, "reasons": reasons, "megabytes": megabytes}))


@pytest.mark.slow
def test_damaged_files_are_judged_alike_by_training_and_use(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.test_fuzz", str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)  # in its own process, as it may crash
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["disagree"] == []
    assert sum(found["verdicts"].values()) == NUM_FILES
    assert min(found["verdicts"]["read"], found["verdicts"]["refused"]) > NUM_FILES / 4  # both happen often
    assert found["megabytes"] < 1000


if __name__ == "__main__":
    main(Path(sys.argv[1]))
