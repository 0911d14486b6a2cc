"""Colorize image files: python -m colorization PATHS... --ckpt CKPT --out FOLDER"""

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from colorization import Colorizer, DeepColorizer, ResNetColorizer, ShallowColorizer
from colorization.files import SUFFIXES, Pixels, has_own_format, read, reason, write
from evaluation import evaluating

STRIP = 2**18  # pixels in full resolution that are converted at a time; more is slower, for want of cache
LONGEST = 8  # times the model's size: a longer side than this is scaled to it, or one thin image would fill the memory
DESCRIPTION = """\
Colorize images: the color is predicted from each image scaled to the size that the model was trained at, and laid over
the lightness in full resolution. Orientation, transparency and bit depth stay, and the file's name and format; what is
no JPEG, PNG, WebP, BMP or TIFF becomes a PNG. Results are sRGB: color profiles are neither applied nor kept."""
EXIT_STATUS = "exit status: 0 if all were colorized, 1 if any failed, 2 if nothing could begin"


class UsageError(ValueError):
    """Nothing can be done as asked; the message says why."""


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m colorization", description=DESCRIPTION, epilog=EXIT_STATUS)
    parser.add_argument("paths", nargs="+", help="image files, patterns, or folders, searched with all subfolders")
    parser.add_argument("--ckpt", required=True, help="checkpoint of a colorizer; nothing else is needed")
    parser.add_argument("--out", required=True, type=Path, help="folder for results, subfolders kept; old are replaced")
    options = parser.parse_args(args)
    try:
        outputs = plan(options.paths, options.out)
        colorizer = load_colorizer(options.ckpt)
        num_failed = colorize_files(colorizer, outputs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{len(outputs) - num_failed:,} colorized in '{options.out}', {num_failed:,} failed")
    return 1 if num_failed else 0


def plan(paths: Sequence[str], out: Path) -> dict[Path, Path]:
    """Find the images, and for each where its result goes: its name in ``out``, under its path below a given folder.

    Raises:
        UsageError: if there is nothing to do, or a result would replace an image or another's result.
    """
    outputs: dict[Path, Path] = {}
    for given in paths:
        matches = [given] if os.path.lexists(given) else sorted(glob.glob(given, recursive=True))
        if not matches:
            raise UsageError(f"there is no '{given}'")
        for path in map(Path, matches):
            for image in find_images(path, out) if path.is_dir() else [path]:
                output = out / (image.relative_to(path) if path.is_dir() else image.name)
                outputs.setdefault(image, output if has_own_format(output) else output.with_suffix(".png"))
    if not outputs:
        raise UsageError(f"no image in {', '.join(paths)}: no file there ends in {', '.join(sorted(SUFFIXES))}")
    originals, sources = {os.path.realpath(image) for image in outputs}, dict[Path, Path]()
    for image, output in outputs.items():
        if os.path.realpath(output) in originals:
            raise UsageError(f"the result of '{image}' would replace the image '{output}'; choose another --out")
        other = sources.setdefault(output, image)
        if os.path.realpath(other) != os.path.realpath(image):
            raise UsageError(f"'{other}' and '{image}' would both become '{output}'; colorize them apart")
    return outputs


def find_images(folder: Path, out: Path) -> Iterator[Path]:
    """Yield every file that is named like an image, and every folder that cannot be listed: reading it will say why."""
    unlisted: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        visible = sorted(name for name in folders if name[0] != ".")
        folders[:] = [name for name in visible if os.path.realpath(Path(parent, name)) != os.path.realpath(out)]
        paths = (Path(parent, name) for name in sorted(names) if name[0] != ".")
        yield from (path for path in paths if path.suffix.lower() in SUFFIXES)
    yield from unlisted


def load_colorizer(path: str) -> Colorizer:
    """Read a checkpoint of any of the three colorizers, told apart by the names and shapes of what they hold.

    No class that a file names is imported.

    Raises:
        UsageError: if it is not there, not one of a colorizer, or was never trained.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        shapes = {name: weight.shape for name, weight in weights.items()}
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint '{path}'") from None
    except Exception:  # a file that is not ours can raise nearly anything
        raise UsageError(f"'{path}' is not a colorizer's checkpoint, or not a whole one") from None
    for kind in (ShallowColorizer, DeepColorizer, ResNetColorizer):
        colorizer: Colorizer = kind(optimizer="adam", lr=1.0, loss="mse")
        if {name: weight.shape for name, weight in colorizer.state_dict().items()} == shapes:
            break
    else:
        raise UsageError(f"'{path}' is not a colorizer's checkpoint, or one of another version")
    colorizer.load_state_dict(weights)
    if not colorizer.image_size:
        raise UsageError(f"the colorizer in '{path}' was never trained")
    return colorizer.to("cuda" if torch.cuda.is_available() else "cpu")


def colorize_files(colorizer: Colorizer, outputs: dict[Path, Path]) -> int:
    """Colorize each file, name on stderr those that cannot be, and return their number."""
    num_failed = 0
    for image, output in tqdm(outputs.items(), desc="Colorizing", unit="image"):
        try:
            picture = read(image)
            write(picture._replace(pixels=colorize(colorizer, picture.pixels)), output)
        except Exception as error:  # a damaged file can raise nearly anything
            num_failed += 1
            tqdm.write(f"{image}: {reason(error)}", file=sys.stderr)
    return num_failed


def colorize(colorizer: Colorizer, pixels: Pixels) -> Pixels:
    """Predict the color at the model's size, and lay it over the image's own lightness, a strip of rows at a time."""
    colored, whole = pixels.copy(), np.iinfo(pixels.dtype).max
    (height, width), size = pixels.shape[:2], int(colorizer.image_size)
    scale = min(size / min(height, width), LONGEST * size / max(height, width))
    small = max(1, round(height * scale)), max(1, round(width * scale))
    with evaluating(colorizer):
        lightness, _ = colorizer.split(torch.from_numpy(scale_down(pixels, *small)[None]).to(colorizer.device))
        planes = [Image.fromarray(plane) for plane in colorizer(lightness)[0].cpu().numpy()]
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            strip = pixels[top : top + rows, :, :3]
            box = (0, top * small[0] / height, small[1], (top + len(strip)) * small[0] / height)  # of the small planes
            resized = [plane.resize((width, len(strip)), Image.Resampling.BICUBIC, box) for plane in planes]
            chroma = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized])[None]).to(colorizer.device)
            original = np.ascontiguousarray(strip.transpose(2, 0, 1), np.float32) / whole
            lightness, _ = colorizer.split(torch.from_numpy(original[None]).to(colorizer.device))
            joined = colorizer.join(lightness, chroma)[0].cpu().numpy()
            colored[top : top + rows, :, :3] = (joined * whole).round().transpose(1, 2, 0)
    return colored


def scale_down(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Return (3, height, width) in [0, 1], on white where the image is transparent."""
    whole = np.float32(np.iinfo(pixels.dtype).max)
    opacity = pixels[..., 3] / whole if pixels.shape[2] == 4 else np.float32(1)
    planes = (1 - opacity * (1 - pixels[..., channel] / whole) for channel in range(3))
    scaled = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in scaled]).clip(0, 1)


if __name__ == "__main__":
    sys.exit(main())
