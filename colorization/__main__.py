"""Colorize image files: python -m colorization PATHS... --ckpt CKPT --out FOLDER"""

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from colorization import Colorizer
from colorization.pictures import colorize_files
from images.files import SUFFIXES, find_images, has_own_format
from resuming.checkpoints import load_model
from system.errors import PigmentError
from system.hardware import within_memory

DESCRIPTION = """\
Colorize images. The model predicts color at the size it was trained at, and the color is laid over the lightness at
full resolution. Orientation, transparency, bit depth, name and format stay; formats other than JPEG, PNG, WebP, BMP and
TIFF become PNG. Images may have up to 178 megapixels. Results are sRGB: color profiles are neither applied nor kept."""
EXIT_STATUS = "exit status: 0 if all were colorized, 1 if any failed, 2 if it could not start"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m colorization", description=DESCRIPTION, epilog=EXIT_STATUS)
    parser.add_argument("paths", nargs="+", help="image files, patterns, or folders, searched with all subfolders")
    parser.add_argument("--ckpt", required=True, help="checkpoint of a colorizer; nothing else is needed")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for the results; keeps subfolders, replaces old results"
    )
    options = parser.parse_args(args)
    try:
        with within_memory("Set CUDA_VISIBLE_DEVICES= to use the CPU."):
            outputs = plan(options.paths, options.out)
            colorizer, _ = load_model(options.ckpt, Colorizer)
            if not colorizer.image_size:
                raise PigmentError(f"the colorizer in '{options.ckpt}' was never trained")
            num_failed = colorize_files(colorizer, outputs)
    except PigmentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    print(f"{len(outputs) - num_failed:,} colorized in '{options.out}', {num_failed:,} failed")
    return 1 if num_failed else 0


def plan(paths: Sequence[str], out: Path) -> dict[Path, Path]:
    """Find the images and the path of each result: the same below ``out`` as the image's below the given folder.

    Raises:
        PigmentError: if there is nothing to do, or a result would replace an image or another result.
    """
    outputs: dict[Path, Path] = {}
    for given in paths:
        matches = [given] if os.path.lexists(given) else sorted(glob.glob(given, recursive=True))
        if not matches:
            raise PigmentError(f"there is no '{given}'")
        for path in map(Path, matches):
            names = sorted(found.path for found in find_images(path, skip=out)) if path.is_dir() else [""]
            for name in names:
                output = out / (name or path.name)
                outputs.setdefault(path / name, output if has_own_format(output) else output.with_suffix(".png"))
    if not outputs:
        raise PigmentError(f"no image in {', '.join(paths)}: no file there ends in {', '.join(sorted(SUFFIXES))}")
    originals, sources = {os.path.realpath(image) for image in outputs}, dict[Path, Path]()
    for image, output in outputs.items():
        if os.path.realpath(output) in originals:
            raise PigmentError(f"the result of '{image}' would replace the image '{output}'; choose another --out")
        other = sources.setdefault(output, image)
        if os.path.realpath(other) != os.path.realpath(image):
            raise PigmentError(f"'{other}' and '{image}' would both become '{output}'; colorize them separately")
    return outputs


if __name__ == "__main__":
    sys.exit(main())
