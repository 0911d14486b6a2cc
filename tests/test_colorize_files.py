import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2
from torch.utils.data import DataLoader

from colorization import Colorizer, DeepColorizer, ResNetColorizer, ShallowColorizer, pictures
from colorization.__main__ import main
from colorization.color import rgb_to_lab
from colorization.pictures import colorize
from images import png
from images.reading import read
from images.writing import photoshop_segment
from resuming.checkpoints import load_model
from tests.world import CONFIGS, damaged_exif
from vae import ConvVAE

SIZE = 16  # what the colorizer is trained at


def train(model: LightningModule, path: Path) -> Path:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_steps=1, accelerator="cpu", **quiet)
    trainer.fit(model, DataLoader(torch.rand(4, 3, SIZE, SIZE), 4))
    if isinstance(model, ShallowColorizer):
        model.net[-2].weight.data *= 40  # one step learns no color that would show
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    return train(ShallowColorizer("adam", 1e-3, "mse"), tmp_path / "shallow.ckpt")


def draw(height: int = 40, width: int = 60, channels: int = 3, whole: int = 255) -> np.ndarray:
    """A smooth, nearly gray image: its lightness leaves room for color."""
    y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    planes = [0.5 + 0.25 * np.sin(5 * x + phase) * np.cos(4 * y) for phase in (0, 0.1, 0.2, 1)]
    image = (whole * np.stack(planes, axis=-1)).astype(np.uint8 if whole == 255 else np.uint16)
    return image[..., 0] if channels == 1 else image[..., :channels]


def save(path: Path, pixels: np.ndarray | None = None, mode: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(draw() if pixels is None else pixels)
    image.convert(mode or image.mode).save(path, **options)
    return path


def run(ckpt: Path, *paths: Path | str, out: str = "out", status: int = 0) -> Path:
    assert main([*map(str, paths), f"--ckpt={ckpt}", f"--out={out}"]) == status
    return Path(out)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def lab(rgb: np.ndarray) -> np.ndarray:
    """(3, H, W)"""
    whole = np.iinfo(rgb.dtype).max
    rgb = np.broadcast_to(rgb[..., None], (*rgb.shape, 3)) if rgb.ndim == 2 else rgb[..., :3]
    return rgb_to_lab(torch.from_numpy((rgb / whole).transpose(2, 0, 1))[None])[0].numpy()


def is_colored_anew(output: np.ndarray, original: np.ndarray, tolerance: float = 0.5) -> bool:
    """The same lightness, where a level of 8 bits is up to 0.4, and a different color, which varies."""
    (lightness, *chroma), (lightness_before, *chroma_before) = lab(output), lab(original)
    assert np.abs(lightness - lightness_before).max() < tolerance
    return np.abs(np.subtract(chroma, chroma_before)).mean() > 2 and np.std(chroma, axis=(1, 2)).min() > 0.5


# how each is saved
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "color.png": ("RGB", {}),
    "gray.png": ("L", {}),
    "gray.tif": ("L", {}),
    "gray.bmp": ("L", {}),
    "palette.png": ("P", {}),
    "gray.jpg": ("L", {"quality": 95}),
    "cmyk.jpg": ("CMYK", {"quality": 95, "subsampling": 0}),
    "UPPER CASE 苹果.JPG": ("L", {"quality": 95}),
    "a png called.jpg": ("L", {"format": "PNG"}),
    "color.webp": ("RGB", {"quality": 95}),
    "animated.gif": ("L", {"save_all": True, "append_images": [Image.new("L", (60, 40))]}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_keeps_its_lightness_and_gets_color(name: str, ckpt: Path, tmp_path: Path) -> None:
    mode, options = FORMATS[name]
    original = save(tmp_path / "in" / name, mode=mode, **options)
    expected = Path("out", name).with_suffix(".png") if name.endswith("gif") else Path("out", name)
    out = run(ckpt, original)
    assert list(out.iterdir()) == [expected]
    with Image.open(expected) as result, Image.open(original) as before:
        assert result.mode == "RGB"
        assert result.format == {"GIF": "PNG"}.get(before.format, before.format)
        if result.format == "JPEG":
            assert [component[1:3] for component in result.layer] == [(1, 1)] * 3  # color at full resolution
        lossy = result.format in ("JPEG", "WEBP")
        as_shown = before.convert("L" if mode == "L" else "RGB")
        assert is_colored_anew(np.asarray(result), np.asarray(as_shown), tolerance=8 if lossy else 0.5)


@pytest.mark.parametrize("shape", [(17, 23), (1, 1), (5, 400), (300, 3), (16, 16)])
def test_any_size(shape: tuple[int, int], ckpt: Path, tmp_path: Path) -> None:
    original = save(tmp_path / "in.png", draw(*shape, channels=1))
    result = pixels(run(ckpt, original) / "in.png")
    assert result.shape == (*shape, 3)
    assert np.abs(lab(result)[0] - lab(pixels(original))[0]).max() < 0.5


@pytest.mark.parametrize(("shape", "expected"), [((48, 64), (16, 21)), ((8, 4), (32, 16)), ((10, 1000), (1, 128))])
def test_color_is_predicted_at_the_models_size(
    shape: tuple[int, int], expected: tuple[int, int], ckpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colorizer, sizes = load_model(ckpt, Colorizer)[0], []
    colorizer.net.register_forward_pre_hook(lambda net, args: sizes.append(tuple(args[0].shape[2:])))
    colorize(colorizer, draw(*shape))
    padded = [tuple(-(-side // 8) * 8 for side in expected)]
    assert sizes == padded


def test_strips_equal_the_whole(ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colorizer, image = load_model(ckpt, Colorizer)[0], draw(201, 130, whole=65535)
    whole = colorize(colorizer, image)
    monkeypatch.setattr(pictures, "STRIP", 1000)
    assert np.abs(colorize(colorizer, image).astype(int) - whole).max() <= 2  # of 65535


def test_at_the_models_own_size_it_is_what_colorize_gives(ckpt: Path) -> None:
    colorizer, image = load_model(ckpt, Colorizer)[0], draw(SIZE, SIZE)
    expected = colorizer.colorize(torch.from_numpy(image / 255).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0)
    got = colorize(colorizer, image)
    assert np.abs(got - 255 * expected.numpy()).max() <= 0.51


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "deep.png", "deep.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_other_exif_kept(name: str, orientation: int, ckpt: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "A painting"
    image = draw(24, 40, channels=1, whole=65535 if "deep" in name else 255)
    original = save(tmp_path / name, image, exif=exif)
    upright = {  # how the specification turns stored pixels for viewing
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.T,
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].T,
        8: np.rot90(image),
    }[orientation]
    path = run(ckpt, original) / name
    with Image.open(path) as result:
        assert result.getexif().get(0x0112, 1) == 1
        assert name != "a.jpg" or dict(result.getexif()) == {0x010E: "A painting"}
        assert np.abs(lab(np.asarray(result))[0] - lab(upright)[0]).max() < 4


CAPTION = "Gemälde, 写真"
XMP = '<rdf tiff:Orientation="6">Ein Gemälde</rdf>'.encode()


def everything() -> dict[str, Any]:
    """Metadata about the picture, to be kept, and about how it was stored, to be dropped."""
    exif, texts = Image.Exif(), PngInfo()
    exif[0x010E], exif[0x013B], exif[0x0112] = CAPTION.encode(), "A painter", 6
    exif[0x8769] = {0x9003: "2020:02:03 04:05:06", 0xA001: 65535, 0x927C: b"addresses"}  # date, color space, maker
    texts.add_text("Title", "A painting")
    texts.add_itxt("Author", "Ein Künstler")
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return {
        "exif": exif.tobytes(),
        "dpi": (600, 600),
        "comment": b"A painting",
        "xmp": XMP,
        "pnginfo": texts,
        "extra": photoshop_segment(0x0404, b"\x1c\x02x\x00\x0aA painting"),  # IPTC
    }


@pytest.mark.parametrize("name", ["a.jpg", "b.jpg", "a.tif", "a.png"])
def test_no_resolution_is_made_up(name: str, ckpt: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "A painting"
    save(tmp_path / name, **({"exif": exif} if name == "b.jpg" else {}))
    with Image.open(run(ckpt, name) / name) as result:
        if name == "a.tif":
            assert (result.tag_v2[282], result.tag_v2[296]) == (1, 1)  # the shape of its pixels, not their size
        else:
            assert not result.info.get("jfif_unit")
            assert 282 not in result.getexif()
            assert name != "a.png" or "dpi" not in result.info


@pytest.mark.parametrize(("resolution", "unit"), [(0, 2), (72, 4)])
def test_a_tiffs_impossible_resolution_is_left_out(resolution: int, unit: int, ckpt: Path, tmp_path: Path) -> None:
    tags = ImageFileDirectory_v2()
    tags[282] = tags[283] = IFDRational(resolution)
    tags[296] = unit
    save(tmp_path / "odd.tif", tiffinfo=tags)
    with Image.open(run(ckpt, "odd.tif") / "odd.tif") as result:
        assert (result.tag_v2[282], result.tag_v2[296]) == (1, 1)


def test_a_gifs_comment_becomes_a_text_of_its_png(ckpt: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.gif", mode="L", comment="Ein Gemälde".encode())
    with Image.open(run(ckpt, "a.gif") / "a.png") as result:
        assert result.text == {"Comment": "Ein Gemälde"}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "deep.png", "deep.tif"])
def test_what_metadata_says_about_a_picture_is_kept(
    name: str, ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, there = tmp_path / name, everything()
    if name == "deep.png":
        pixel = io.BytesIO()
        Image.new("RGB", (1, 1)).save(pixel, "PNG", **there)
        content = bytes(imagecodecs.png_encode(np.ascontiguousarray(draw(whole=65535))))
        original.write_bytes(png.with_metadata(content, pixel.getvalue()))
    elif name.endswith(".tif"):
        tags: list[Any] = [
            (0x010E, 2, 0, CAPTION.encode(), True),
            (0x013B, 2, 0, "A painter", True),
            (0x011D, 5, 1, (3, 7), True),  # where it lies on the page
            (700, 1, 3, b"<x>", True),  # XMP
            (33723, 4, 2, (7, 8), True),  # IPTC
            (34377, 7, 4, b"8BIM", True),  # Photoshop's
        ]
        image = draw(whole=65535 if name == "deep.tif" else 255)
        tifffile.imwrite(
            original, image, byteorder=">", photometric="rgb", resolution=(600, 600), metadata=None, extratags=tags
        )
    else:
        save(original, **there)
    with Image.open(run(ckpt, original) / name) as result:
        result.load()
        exif, kind = result.getexif(), result.format
        assert kind == "WEBP" or np.allclose(result.info["dpi"], 600, atol=0.1)
        if kind != "BMP":
            assert exif[0x010E].encode("latin-1").decode() == CAPTION  # as others write and read it
            assert (exif[0x013B], exif.get(0x0112, 1)) == ("A painter", 1)
        if kind not in ("BMP", "TIFF"):
            assert exif.get_ifd(0x8769) == {0x9003: "2020:02:03 04:05:06", 0xA001: 1}
        if kind in ("JPEG", "WEBP", "PNG"):
            assert result.info["xmp"] == "<rdf >Ein Gemälde</rdf>".encode()
        if kind == "JPEG":
            assert result.info["comment"] == b"A painting"
            assert result.info["photoshop"][0x0404].endswith(b"A painting")
        if kind == "PNG":
            assert (result.text["Title"], result.text["Author"]) == ("A painting", "Ein Künstler")
        if kind == "TIFF":
            with tifffile.TiffFile(f"out/{name}") as file:
                found = {tag.code: tag.value for tag in file.pages[0].tags}
            assert (found[700], found[33723], found[0x011D]) == (b"<x>", struct.pack(">II", 7, 8), (3, 7))
            assert "written without its ImageResource" in capsys.readouterr().err


def test_a_note_says_what_changed_in_reading_or_writing(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray = imagecodecs.cms_profile("gray", whitepoint=(0.3127, 0.3290), gamma=1.8)
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, mode="L", icc_profile=gray)
    long = Image.Exif()
    long[0x010E] = "A painting " * 10_000
    short = save(tmp_path / "c.jpg").read_bytes()
    segments = [b"Exif\0\0" + part for part in (long.tobytes()[6:][:60_000], long.tobytes()[6:][60_000:])]
    segments = [b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment for segment in segments]
    (tmp_path / "in" / "c.jpg").write_bytes(short[:2] + b"".join(segments) + short[2:])
    comment, more = (b"\xff\xfe\x00\x06text", b"\xff\xe1\x00\x28http://ns.adobe.com/xmp/extension/\x00<x>")
    (tmp_path / "in" / "d.jpg").write_bytes(short[:2] + 2 * comment + more + short[2:])
    out = run(ckpt, "in")
    errors = capsys.readouterr().err
    assert "in/d.jpg: written without its first comments and extended XMP\n" in errors
    assert "in/a.png and 1 more: converted to sRGB from 'gray built-in'\n" in errors
    assert "in/c.jpg: written without its EXIF\n" in errors
    for name in ("a.png", "c.jpg"):
        with Image.open(out / name) as result:
            assert not {"icc_profile", "exif"} & result.info.keys()


def test_metadata_of_the_wrong_type_is_left_out(ckpt: Path, tmp_path: Path) -> None:
    original = save(tmp_path / "a.jpg", draw(24, 40), exif=damaged_exif(orientation=6))
    with Image.open(run(ckpt, original) / "a.jpg") as result:
        assert (result.size, dict(result.getexif())) == ((24, 40), {})


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_metadata_that_is_none_is_left_out(name: str, ckpt: Path, tmp_path: Path) -> None:
    original = save(tmp_path / name, exif=b"Exif\0\0garbage", dpi=(72, 72))
    assert "exif" not in read(run(ckpt, original) / name).metadata


def test_what_pillow_calls_large_is_colorized(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)  # it warns above this, and refuses above twice as many
    assert read(run(ckpt, save(tmp_path / "a.png")) / "a.png").pixels.shape == (40, 60, 3)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "gray with alpha.png", "palette.png"])
def test_alpha_is_kept_and_the_color_predicted_on_white(name: str, ckpt: Path, tmp_path: Path) -> None:
    image = draw(channels=4)
    image[..., 3] = np.repeat([0, 128, 255], 20)
    mode = {"gray with alpha.png": "LA", "palette.png": "P"}.get(name)
    options = {"lossless": True, "exact": True} if "webp" in name else {}
    original = save(tmp_path / name, image, mode, **options)
    with Image.open(original) as before:
        expected = np.asarray(before.convert("RGBA"))
    result = pixels(run(ckpt, original) / name)
    assert (result[..., 3] == expected[..., 3]).all()
    visible = expected[..., 3] > 0
    difference = np.abs(lab(result)[0] - lab(expected)[0])[visible]
    assert difference.max() < (6 if "webp" in name else 0.5)

    white = 255 - expected[..., 3:] / 255 * (255.0 - expected[..., :3])
    on_white = colorize(load_model(ckpt, Colorizer)[0], white.round().astype(np.uint8))
    opaque = expected[..., 3] == 255
    if "webp" not in name:
        assert np.abs(lab(result) - lab(on_white))[:, opaque].max() < 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept(name: str, channels: int, ckpt: Path, tmp_path: Path) -> None:
    image, original = draw(channels=channels, whole=65535), tmp_path / name
    if name.startswith("big"):
        extra = ["unassalpha"] if channels == 4 else None
        photometric = "minisblack" if channels == 1 else "rgb"
        tifffile.imwrite(original, image, photometric=photometric, extrasamples=extra, byteorder=">")
    elif name == "a.tif":
        tifffile.imwrite(original, image, photometric="minisblack" if channels == 1 else "rgb", compression="lzw")
    else:
        original.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image)))
    assert channels == 1 or (pixels(original) == image >> 8).all()  # as another reader sees it
    path = run(ckpt, original) / name
    result = read(path).pixels
    assert (result.shape, result.dtype) == ((40, 60, max(3, channels)), np.uint16)
    assert is_colored_anew(result, image, tolerance=0.02)
    assert channels < 4 or (result[..., 3] == image[..., 3]).all()
    assert (pixels(path) == result >> 8).all()  # Pillow, another reader, sees the higher byte


def test_bad_files_are_named_and_the_rest_goes_on(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    whole = save(root / "whole.jpg").read_bytes()
    save(root / "z.png")
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("I am no image")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "itself.png").symlink_to("itself.png")
    os.mkfifo(root / "pipe.png")
    save(root / "32.tif", np.zeros((16, 16), np.float32))
    tifffile.imwrite(root / "signed.tif", np.zeros((16, 16), np.int16), photometric="minisblack")
    deep = imagecodecs.png_encode(np.ascontiguousarray(draw(whole=65535)))
    (root / "half.png").write_bytes(deep[: len(deep) // 2])
    header = bytearray(save(tmp_path / "bomb.png").read_bytes())
    header[16:24] = (14_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (root / "bomb.png").write_bytes(header)
    (root / ".hidden.png").write_text("")
    save(root / ".hidden" / "a.png")
    (root / "notes.txt").write_text("")

    out = run(ckpt, root, status=1)
    assert sorted(path.name for path in out.iterdir()) == ["whole.jpg", "z.png"]
    said, errors = capsys.readouterr()
    assert said == "2 colorized in 'out', 10 failed\n"
    reasons = {
        "truncated.jpg": "truncated",
        "empty.png": "not an image",
        "text.png": "not an image",
        "dangling.png": "No such file",
        "itself.png": "symbolic links",
        "pipe.png": "a pipe",
        "32.tif": "not gray or RGB",
        "signed.tif": "not gray or RGB",
        "half.png": "damaged",
        "bomb.png": "decompression bomb",
    }
    lines = [line for line in errors.replace("\r", "\n").splitlines() if str(root) in line]
    assert len(lines) == len(reasons)
    assert [name for name, why in reasons.items() if not any(f"{root / name}: " in x and why in x for x in lines)] == []


def test_what_was_there_stays_whole_if_writing_fails(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = save(tmp_path / "a.png")
    before = (run(ckpt, original) / "a.png").read_bytes()

    def fail(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        out = run(ckpt, original, status=1)
    assert [path.name for path in out.iterdir()] == ["a.png"]
    assert (out / "a.png").read_bytes() == before
    (out / "a.png").write_bytes(b"")
    assert (run(ckpt, original) / "a.png").read_bytes() == before  # replaces an earlier run's


def test_folders_keep_their_structure_and_patterns_are_expanded(ckpt: Path, tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.png", "sub/deeper/b.jpg", "sub/notes.txt", "photo[1].png"):
        save(tmp_path / "in" / name, format="PNG")
    out = run(ckpt, "in", "in/*.png", "in/photo[1].png", out="in/out")  # an out within is not searched itself
    everything = {"a.png", "sub/a.png", "sub/deeper/b.jpg", "photo[1].png"}
    for _ in range(2):
        assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == everything
        run(ckpt, "in", out="in/out")
    assert {str(path) for path in run(ckpt, "in/**/a*.png", "in/sub/deeper", out="flat", status=2).rglob("*")} == set()
    assert {str(path) for path in run(ckpt, "in/s*/*.png", "in/sub/deeper", out="flat").rglob("*")} == {
        "flat/a.png",
        "flat/b.jpg",
    }


def test_what_is_passed_over_is_counted(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.png", "in/b.HEIC", "in/c.dng", "in/sub/d.dng"):
        save(tmp_path / name, format="PNG")
    assert [path.name for path in run(ckpt, "in").iterdir()] == ["a.png"]
    assert capsys.readouterr().out == "1 colorized in 'out', 0 failed, 3 passed over (.dng, .heic files are not read)\n"
    run(ckpt, "in/sub", status=2)
    assert capsys.readouterr().err == "error: nothing to colorize in in/sub: .dng files are not read\n"
    run(ckpt, "in/c.dng", status=1)
    assert "in/c.dng: .dng files are not read; save this one as JPEG, PNG, or TIFF" in capsys.readouterr().err


NO_IMAGE = "no image in empty: no file there ends in .apng, .avif"
REPLACE, BECOME = "the result of '{}' would replace the image '{}'", "'{}' and '{}' would both become '{}'"


@pytest.mark.parametrize(
    ("paths", "out", "messages"),
    [
        (["nowhere.png"], "out", ["there is no 'nowhere.png'"]),
        (["no*.png"], "out", ["there is no 'no*.png'"]),
        (["empty"], "out", [NO_IMAGE]),
        (["in/a.png"], "in", [REPLACE.format("in/a.png", "in/a.png")]),
        (["in/a.png"], "link", [REPLACE.format("in/a.png", "link/a.png")]),
        (["in/sub/a.png", "in/a.png"], "out", [BECOME.format("in/sub/a.png", "in/a.png", "out/a.png")]),
        (
            ["gif"],
            "out",
            [BECOME.format(f"gif/{n}.gif", f"gif/{n}.png", f"out/{n}.png") for n in "ab"]
            + [BECOME.format("gif/a.gif", "gif/a.tga", "out/a.png")],
        ),
    ],
)
def test_nothing_begins_that_would_lose_something(
    paths: list[str], out: str, messages: list[str], ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/sub/a.png", "gif/a.gif", "gif/a.png", "gif/a.tga", "gif/b.gif", "gif/b.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("in")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run(ckpt, *paths, out=out, status=2)
    said, errors = capsys.readouterr()
    assert said == ""
    assert (errors.startswith("error: "), errors.count("\n")) == (True, 1)
    assert [message for message in messages if message not in errors] == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("blocked", ["out", "out/sub"])
def test_an_unwritable_folder_is_named_before_anything_is_computed(
    blocked: str, ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder should be")
    run(ckpt, "in", status=2)
    said, errors = capsys.readouterr()
    assert (said, errors) == ("", f"error: cannot write to '{blocked}': File exists. Choose a different --out.\n")
    assert not list(tmp_path.glob("out/*.png"))


def test_the_same_file_under_two_names_is_no_conflict(ckpt: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert pixels(run(ckpt, "a.png", tmp_path / "a.png") / "a.png").shape == (40, 60, 3)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", [ShallowColorizer, DeepColorizer, ResNetColorizer])
def test_any_colorizers_checkpoint_is_enough(kind: type[ShallowColorizer], tmp_path: Path) -> None:
    more = {"weights": None} if kind is ResNetColorizer else {}
    trained = kind("sgd", 1e-3, "mae", **more)
    path = train(trained, tmp_path / "any.ckpt")
    loaded = load_model(path, Colorizer)[0]
    assert type(loaded) is kind
    assert loaded.image_size == SIZE
    lightness = torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded.eval()(lightness), trained.eval()(lightness))


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unsafe",)


def test_other_files_are_refused_as_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png")
    train(ConvVAE(SIZE, latent_dim=2, lr=1e-3), tmp_path / "vae.ckpt")
    untrained = ShallowColorizer("adam", 1e-3, "mse")
    torch.save(
        {"state_dict": untrained.state_dict(), "hyper_parameters": dict(untrained.hparams)}, tmp_path / "new.ckpt"
    )
    torch.save({"state_dict": {"a": 1}}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": Unsafe()}, tmp_path / "unsafe.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "vae.ckpt").read_bytes()[:1000])
    (tmp_path / "text.ckpt").write_text("I am no checkpoint")
    (tmp_path / "run.ckpt" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run.ckpt" / "checkpoints" / "last.ckpt").touch()
    for name in ("run", "vae", "other", "list", "unsafe", "half", "text", "new", "nowhere"):
        reasons = {
            "run": f"is a folder, not a checkpoint. Checkpoints in it: {tmp_path}/run.ckpt/checkpoints/last.ckpt",
            "vae": "not the checkpoint of a Colorizer",
            "new": "never trained",
            "nowhere": "there is no checkpoint",
        }
        reason = reasons.get(name, "is not a whole checkpoint of this program")
        run(tmp_path / f"{name}.ckpt", "a.png", status=2)
        said, errors = capsys.readouterr()
        assert (said, errors.count("\n")) == ("", 1)
        assert reason in errors
        assert f"{name}.ckpt" in errors
    assert not Path("out").exists()
    assert not Path("unsafe").exists()


def test_a_name_cannot_control_the_terminal(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\n2 colorized in 'out', 0 failed\x1b[2K.png").write_text("no image")
    save(tmp_path / "in" / "b\r.tif", save_all=True, append_images=[Image.new("L", (8, 8))])
    (tmp_path / "in" / os.fsdecode(b"c\xff.png")).write_text("no image")
    run(ckpt, "in", out=os.fsdecode(b"out\xff"), status=1)
    said, errors = capsys.readouterr()
    assert said == r"1 colorized in 'out\udcff', 2 failed" + "\n"
    assert r"in/a\n2 colorized in 'out', 0 failed\x1b[2K.png: not an image" in errors
    assert r"in/c\udcff.png: not an image" in errors
    assert r"in/b\r.tif: only page 1 of 2, the largest" in errors


def test_interrupted_it_ends_quietly(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "colorize", interrupt)
    run(ckpt, save(tmp_path / "a.png"), status=130)
    assert "Traceback" not in capsys.readouterr().err


MEASURED = """
import pathlib, re, runpy
try:
    runpy.run_module("colorization", run_name="__main__")
finally:  # unlike what getrusage says, not the memory of the process that started this one
    print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_without_memory_a_line_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*args: Any) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(pictures, "sketch", fill)
    Image.new("RGB", (8, 8)).save("a.png")
    assert main(["a.png", "--out=colorized"]) == 1
    assert "a.png: out of memory. Set CUDA_VISIBLE_DEVICES= to use the CPU." in capsys.readouterr().err


def test_the_command_fits_24_megapixels_in_2_gb_and_says_by_its_status_that_a_file_failed(tmp_path: Path) -> None:
    tile = Image.fromarray(draw(400, 600))
    tile.resize((6000, 4000), Image.Resampling.NEAREST).save(tmp_path / "large.jpg", quality=75)
    (tmp_path / "bad.png").write_text("")
    command = [sys.executable, "-c", MEASURED, "large.jpg", "bad.png", "--out=out"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    _, said, megabytes = done.stdout.splitlines()
    assert (done.returncode, said) == (1, "1 colorized in 'out', 1 failed"), done.stderr
    assert "bad.png: not an image" in done.stderr
    assert "Traceback" not in done.stderr
    assert int(megabytes) < 2000
    with Image.open("out/large.jpg") as image:
        assert image.size == (6000, 4000)
