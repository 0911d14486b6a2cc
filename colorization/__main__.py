"""Colorize image files: python -m colorization PATHS... --out FOLDER"""

import glob
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.arguments import ArgumentParser, fraction, local_path
from colorization import Colorizer, PaletteColorizer
from colorization.hints import Hint
from colorization.palette import DEFAULT_VIVIDNESS
from colorization.pictures import colorize_files, result_of
from colorization.weights import PALETTE
from images.files import PASSED_OVER, SUFFIXES, find_images, suffix
from resuming.artifacts import on_this_machine
from resuming.checkpoints import load_model
from system.atomic import make_folders
from system.command import Command
from system.errors import PigmentError, reason, shown
from system.hardware import USE_CPU, within_memory

DESCRIPTION = """\
Colorize images. The model predicts color at the size it was trained at, and the color is laid over the lightness at
full resolution. The result is upright and in sRGB, and keeps the name, transparency, resolution, and captions. A JPEG,
PNG, WebP, BMP, or TIFF keeps its format; others become PNG. The largest of several pages is read, and an animation's
first frame. Images may have up to 178 megapixels."""
EXIT_STATUS = "exit status: 0 if all were colorized, 1 if any failed, 2 if it could not start"


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m colorization", description=DESCRIPTION, epilog=EXIT_STATUS)
    parser.add_argument(
        "paths",
        nargs="+",
        type=os.path.expanduser,
        help="image files, patterns, or folders, searched with all subfolders",
    )
    parser.add_argument(
        "--out", required=True, type=local_path, help="folder for the results; keeps subfolders, replaces old results"
    )
    parser.add_argument(
        "--ckpt", type=local_path, help="checkpoint of a colorizer to use instead of the one that comes with Pigment"
    )
    parser.add_argument(
        "--vividness",
        type=fraction,
        help=f"from 0, cautious colors, to 1, as colorful as a color picture usually is (default: {DEFAULT_VIVIDNESS})",
    )
    parser.add_argument(
        "--hint",
        metavar="X,Y,COLOR | FILE",
        type=hints_in,
        action="extend",
        default=[],
        help="a color for a point of the picture, such as 0.3,0.5,#c03020 or 0.3,0.5,red. X is 0 at the left edge and 1"
        " at the right, Y is 0 at the top and 1 at the bottom. What is near and looks alike gets the color, too; the"
        " lightness stays. Can be repeated, or name a text file with one hint a line; lines that start with # are"
        " comments",
    )
    with Command() as command:
        options = parser.parse_args(args)
        with within_memory(USE_CPU):
            outputs, passed_over = plan(options.paths, options.out)
            if options.hint and len(outputs) > 1:
                raise PigmentError(f"--hint is about one picture, got {len(outputs):,}; colorize that one on its own")
            path = on_this_machine(options.ckpt or PALETTE)
            colorizer, _ = load_model(path, Colorizer)
            if not colorizer.image_size:
                raise PigmentError(f"the colorizer in '{path}' was never trained")
            wishes: dict[str, Any] = {}
            if isinstance(colorizer, PaletteColorizer):
                if options.vividness is not None and colorizer.curve is None:
                    raise PigmentError(f"'{path}' was never validated, which calibrates its vividness: train it longer")
                wishes = {"vividness": DEFAULT_VIVIDNESS if options.vividness is None else options.vividness}
                wishes["hints"] = options.hint
            elif options.hint or options.vividness is not None:
                kind = type(colorizer).__name__
                raise PigmentError(f"--hint and --vividness need a PaletteColorizer, but '{path}' is a {kind}")
            make_folders(outputs.values())
            if options.ckpt is None:
                print("Model: the palette colorizer that comes with Pigment; --ckpt takes one of your own")
            num_failed = colorize_files(colorizer, outputs, **wishes)
        said = f"{len(outputs) - num_failed:,} colorized in '{shown(options.out)}', {num_failed:,} failed"
        if passed_over:
            kinds = ", ".join(sorted({suffix(path) for path in passed_over}))
            said += f", {len(passed_over):,} passed over ({kinds} files are not read)"
        print(said)
        return 1 if num_failed else 0
    return command.status


def hints_in(text: str) -> list[Hint]:
    """Read what ``--hint`` is given: one hint, or the path of a file with one in every line.

    A hint begins with a number, so a line that starts with # is a comment; colors may start with #, too.
    """
    path = local_path(text)
    try:
        if not path.exists():
            if "," not in text:
                raise ArgumentTypeError(f"there is no file '{text}', and a hint is x,y,color such as 0.3,0.5,#c03020")
            return [Hint.parse(text)]
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(reason(error)) from error
    hints = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and line[0] != "#":
            try:
                hints.append(Hint.parse(line))
            except ValueError as error:
                raise ArgumentTypeError(f"{text}, line {number}: {error}") from error
    if not hints:
        raise ArgumentTypeError(f"{text} holds no hint; each line must be x,y,color such as 0.3,0.5,#c03020")
    return hints


def plan(paths: Sequence[str], out: Path) -> tuple[dict[Path, Path], list[Path]]:
    """Find the images and the path of each result: the same below ``out`` as the image's below the given folder.

    Returns:
        The path of each image's result, and the files in the given folders that are passed over (see images.files).

    Raises:
        PigmentError: if there is nothing to do, or results would replace images or each other.
    """
    outputs, passed_over = dict[Path, Path](), list[Path]()
    for given in paths:
        matches = [given] if os.path.lexists(given) else sorted(glob.glob(given, recursive=True))
        if not matches:
            raise PigmentError(f"there is no '{given}'")
        for path in map(Path, matches):
            names = sorted(found.path for found in find_images(path, skip=out)) if path.is_dir() else [""]
            for name in names:
                output = out / (name or path.name)
                if name and suffix(name) in PASSED_OVER:
                    passed_over.append(path / name)
                else:
                    outputs.setdefault(path / name, result_of(output))
    if not outputs and passed_over:
        kinds = ", ".join(sorted({suffix(path) for path in passed_over}))
        raise PigmentError(f"nothing to colorize in {', '.join(paths)}: {kinds} files are not read")
    if not outputs:
        raise PigmentError(f"no image in {', '.join(paths)}: no file there ends in {', '.join(sorted(SUFFIXES))}")
    originals, sources = {os.path.realpath(image) for image in outputs}, dict[Path, Path]()
    conflicts = []
    for image, output in outputs.items():
        other = sources.setdefault(output, image)
        if os.path.realpath(output) in originals:
            conflicts.append(f"the result of '{image}' would replace the image '{output}'")
        elif os.path.realpath(other) != os.path.realpath(image):
            conflicts.append(f"'{other}' and '{image}' would both become '{output}'")
    if conflicts:
        raise PigmentError(f"{'; '.join(conflicts)}. Rename some, or use several folders for --out.")
    return outputs, passed_over


if __name__ == "__main__":
    sys.exit(main())
