"""How fast this machine trains, beside the arithmetic alone and beside a notebook: python -m benchmarks"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.systems import DEVICE, SYSTEMS

ROOT = Path(__file__).parents[1]
WAYS = ("bare", "ours", "notebook")
GROWTH = (1_000, 20_000)  # images in the stores whose memory is compared
BUILT, MANY = 3_000, 100_000  # files of which a store is built, and among which one is found again
STORES = {"fruits, 100 px": SYSTEMS["VAE"], "paintings, 256 px": SYSTEMS["A"]}
ON_GPU = ("--trainer.precision=16-mixed", "--trainer.precision=32-true", "--data.init_args.on_device=true")
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="of everything, in turns; medians are shown")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="all figures, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.repetitions)
    options.out.write_text(json.dumps(figures, indent=1))
    print(table(figures))


def measure(scratch: Path, repetitions: int) -> Figures:
    """Measure everything, each in a process of its own, whose files go to ``scratch``."""
    alone = {"PIGMENT_CACHE": str(scratch / "cache")}
    options = [f"--trainer.default_root_dir={scratch / 'runs'}"]
    one_thread = {"OMP_NUM_THREADS": "1"}
    results: dict[str, list[Figures]] = defaultdict(list)
    for name in SYSTEMS:
        run("benchmarks.ours", name, *options)  # builds the store
    folders = {name: multiply(system.files(), scratch / name, BUILT) for name, system in STORES.items()}
    for _ in tqdm(range(repetitions), desc="Benchmarks", unit="round"):
        for name in SYSTEMS:
            for way in WAYS:
                results[f"{name} {way}"].append(run(f"benchmarks.{way}", name, *(options if way == "ours" else [])))
            if DEVICE.type == "cuda":
                for variant in ON_GPU:
                    results[f"{name} ours {variant}"].append(run("benchmarks.ours", name, *options, variant))
            else:
                two = [*options, "--trainer.devices=2", "--trainer.strategy=ddp"]
                results[f"{name} 1 process"].append(run("benchmarks.ours", name, *options, **one_thread))
                results[f"{name} 2 processes"].append(run("benchmarks.ours", name, *two, **one_thread))
        for name, system in STORES.items():
            given = [str(folders[name]), str(system.size)]
            results[f"{name}, decoded"].append(run("benchmarks.decoding", *given))
            with tempfile.TemporaryDirectory(dir=scratch) as cache:
                results[f"{name}, store built"].append(run("benchmarks.stores", *given, PIGMENT_CACHE=cache))
        results["--help"].append(seconds("train.py", "--help"))
        results["import lightning.pytorch.cli"].append(seconds("-c", "import lightning.pytorch.cli"))
    files = SYSTEMS["VAE"].files()
    for number in (*GROWTH, MANY):
        root = multiply(files, scratch / f"{number}", number)
        for opened in ("built", "found"):
            results[f"{number:,} files, 32 px, store {opened}"].append(
                run("benchmarks.stores", str(root), "32", **alone)
            )
        if number in GROWTH:
            given = [*options, f"--data.init_args.root={root}"]
            run("benchmarks.ours", "VAE", *given, **alone)  # builds the store
            results[f"VAE ours, {number:,} images"].append(run("benchmarks.ours", "VAE", *given, **alone))
    return {"machine": machine(), "results": results}


def run(module: str, *args: str, **environment: str) -> Figures:
    """Run a module, and return what it says at the end."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode or not said:
        raise SystemExit(f"python -m {module} {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    return json.loads(said[-1])


def seconds(*args: str) -> Figures:
    """Return the processor time, user and system, that Python takes."""
    before = os.times()
    subprocess.run([sys.executable, *args], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return {"cpu_s": after.children_user + after.children_system - before.children_user - before.children_system}


def multiply(files: list[Path], root: Path, number: int) -> Path:
    """Write ``number`` images, no two alike to the byte, in place of as many real ones."""
    root.mkdir(parents=True)
    contents = [path.read_bytes() for path in files[:1000]]
    for index in range(number):
        (root / f"{index}.jpg").write_bytes(contents[index % len(contents)] + str(index).encode())
    return root


def machine() -> Figures:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return {
        "processor": f"{os.cpu_count()} x {models[0] if models else platform.processor()}",
        "GPU": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "none",
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(figures: Figures) -> str:
    """Lay the medians out, with the lowest and the highest."""
    lines = ["  ".join(f"{what}: {value}" for what, value in figures["machine"].items()), ""]
    for name, repetitions in figures["results"].items():
        columns = []
        for figure in repetitions[0]:
            values = sorted(repetition[figure] for repetition in repetitions)
            columns.append(f"{figure} {statistics.median(values):,.4g} ({values[0]:,.4g} to {values[-1]:,.4g})")
        lines.append(f"{name:32}" + "  ".join(columns))
    lines.append("")
    speed = {
        name: statistics.median(figure["images_per_second"] for figure in repetitions)
        for name, repetitions in figures["results"].items()
        if "images_per_second" in repetitions[0]
    }
    for name in SYSTEMS:
        ratios = f"{name:5} ours / bare {speed[f'{name} ours'] / speed[f'{name} bare']:.2f}"
        ratios += f"   ours / notebook {speed[f'{name} ours'] / speed[f'{name} notebook']:.2f}"
        if f"{name} 2 processes" in speed:
            ratios += f"   2 processes / 2 x 1 {speed[f'{name} 2 processes'] / speed[f'{name} 1 process'] / 2:.2f}"
        lines.append(ratios)
    for name in STORES:
        lines.append(f"{name}: store built / decoded {speed[f'{name}, store built'] / speed[f'{name}, decoded']:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
