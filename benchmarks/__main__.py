"""How fast this machine trains, compared with the bare arithmetic and a notebook: python -m benchmarks"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import gpu
from benchmarks.systems import DEVICE, ROOT, SYSTEMS, Figures, machine, multiply, run
from cli.arguments import ArgumentParser, local_path, positive
from system.atomic import make_folders
from system.command import Command
from system.errors import PigmentError

GROWTH = (1_000, 20_000)  # images in the stores whose memory is compared
BUILT, MANY = 10_000, 100_000  # files in a folder to build a store from, and in a large one to find again
STORES = {"fruits, 100 px": SYSTEMS["VAE"], "paintings, 256 px": SYSTEMS["A"]}
NETWORKS = ("A", "B", "palette", "VAE")  # of SYSTEMS
IN_NOTEBOOKS = ("A", "B", "VAE")
WORKERS = ("threads", "processes")  # decode images: threads wait for Python's lock, processes must start first
Results = dict[str, list[Figures]]  # one for each repetition


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--repetitions",
        type=positive,
        default=3,
        help="rounds (default: %(default)s); large folders and memory are measured once",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        default=Path("benchmarks.json"),
        help="file for all figures, as JSON (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="measure this machine's GPUs instead, with more networks, precisions, and batch sizes; takes minutes",
    )
    with Command() as command:
        options = parser.parse_args(args)
        make_folders([options.out])
        if options.gpu:
            measure_gpu(options.out)
        else:
            measure_cpu(options.out, options.repetitions)
    return command.status


def measure_gpu(out: Path) -> None:
    if DEVICE.type != "cuda":
        raise PigmentError("--gpu measures a GPU, but no GPU works here. Without --gpu, the CPU is measured.")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    gpu.main(out)


def measure_cpu(out: Path, repetitions: int) -> None:
    results: Results = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for _ in measure(results, Path(scratch), repetitions):
            out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    print(table(machine(), results))


def measure(results: Results, scratch: Path, repetitions: int) -> Iterator[None]:
    """Add results, each from its own process that writes below ``scratch``; yield after each round."""
    one_thread = {"OMP_NUM_THREADS": "1"}

    def fit(name: str, *options: str, **environment: str) -> Figures:
        with tempfile.TemporaryDirectory(dir=scratch) as runs:
            return run("benchmarks.ours", name, f"--trainer.default_root_dir={runs}", *options, **environment)

    for name in NETWORKS:
        fit(name)  # builds the store
    folders = {name: multiply(system.files(), scratch / name, BUILT) for name, system in STORES.items()}
    for _ in tqdm(range(repetitions), desc="Benchmarks", unit="round"):
        for name in NETWORKS:
            results[f"{name} bare"].append(run("benchmarks.bare", name))
            results[f"{name} ours"].append(fit(name))
            if name in IN_NOTEBOOKS:
                results[f"{name} notebook"].append(run("benchmarks.notebook", name))
            if DEVICE.type == "cpu":
                two = ("--trainer.devices=2", "--trainer.strategy=ddp")
                results[f"{name} 1 process"].append(fit(name, **one_thread))
                results[f"{name} 2 processes"].append(fit(name, *two, **one_thread))
        for name, system in STORES.items():
            given = (str(folders[name]), str(system.size))
            for workers in WORKERS:
                results[f"{name}, decoded in {workers}"].append(run("benchmarks.decoding", *given, workers))
            with tempfile.TemporaryDirectory(dir=scratch) as cache:
                results[f"{name}, store built"].append(run("benchmarks.stores", *given, PIGMENT_CACHE=cache))
        results["a picture of 12 megapixels"].append(run("benchmarks.use"))
        results["--help"].append(seconds("train.py", "--help"))
        results["import lightning.pytorch.cli"].append(seconds("-c", "import lightning.pytorch.cli"))
        yield
    files = SYSTEMS["VAE"].files()
    cached = {"PIGMENT_CACHE": str(scratch / "cache")}
    for number in (*GROWTH, MANY):
        root = multiply(files, scratch / f"{number}", number)
        for became in ("built", "found"):
            results[f"{number:,} files, 32 px, store {became}"].append(
                run("benchmarks.stores", str(root), "32", **cached)
            )
        if number in GROWTH:
            given_root = f"--data.init_args.root={root}"
            fit("VAE", given_root, **cached)  # builds the store
            results[f"VAE ours, {number:,} images"].append(fit("VAE", given_root, **cached))
        yield


def seconds(*args: str) -> Figures:
    """Return the processor time, user and system, of a Python process."""
    before = os.times()
    subprocess.run([sys.executable, *args], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return {"cpu_s": after.children_user + after.children_system - before.children_user - before.children_system}


def table(machine: dict[str, str], results: Results) -> str:
    """Tabulate the medians, each with the lowest and highest value."""
    lines = ["  ".join(f"{what}: {value}" for what, value in machine.items()), ""]
    medians: dict[str, Figures] = {}
    for name, repetitions in results.items():
        values = {figure: sorted(repetition[figure] for repetition in repetitions) for figure in repetitions[0]}
        medians[name] = {figure: statistics.median(several) for figure, several in values.items()}
        columns = (
            f"{figure} {medians[name][figure]:,.4g} ({several[0]:,.4g} to {several[-1]:,.4g})"
            for figure, several in values.items()
        )
        lines.append(f"{name:36}" + "  ".join(columns))
    lines.append("")
    speed = {name: figures.get("images_per_second", 0.0) for name, figures in medians.items()}
    for name in NETWORKS:
        ours = medians[f"{name} ours"]
        ratios = f"{name:7} ours / bare {speed[f'{name} ours'] / speed[f'{name} bare']:.2f}"
        if f"{name} notebook" in speed:
            ratios += f"   ours / notebook {speed[f'{name} ours'] / speed[f'{name} notebook']:.2f}"
        if f"{name} 2 processes" in speed:
            ratios += f"   2 processes / 2 x 1 {speed[f'{name} 2 processes'] / speed[f'{name} 1 process'] / 2:.2f}"
        lines.append(f"{ratios}   end of epoch / its steps {ours['epoch_end_s'] / ours['training_s']:.2f}")
    for name in STORES:
        built = speed[f"{name}, store built"]
        ratios = ", ".join(f"in {workers} {built / speed[f'{name}, decoded in {workers}']:.2f}" for workers in WORKERS)
        lines.append(f"{name}: store built / decoded {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
