"""Colorize image files: python -m colorization PATHS... --ckpt CKPT --out FOLDER"""

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from colorization import Colorizer, DeepColorizer, ResNetColorizer, ShallowColorizer
from colorization.files import SUFFIXES, has_own_format
from colorization.pictures import colorize_files

DESCRIPTION = """\
Colorize images: the color is predicted from each image scaled to the size that the model was trained at, and laid over
the lightness in full resolution. Orientation, transparency and bit depth stay, and the file's name and format; what is
no JPEG, PNG, WebP, BMP or TIFF becomes a PNG. Images may have up to 178 megapixels. Results are sRGB: color profiles
are neither applied nor kept."""
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


if __name__ == "__main__":
    sys.exit(main())
