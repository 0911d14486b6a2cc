"""How fast this machine's GPUs train, and how long they wait: python -m benchmarks --gpu

Most measurements share one process, and each is short. The most important ones come first, and the file is written
after each, so a run that is cut off still has figures.
"""

import gc
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.profiler import profile
from tqdm import tqdm

from benchmarks import bare, ours
from benchmarks.systems import DEVICE, SYSTEMS, WARM_UP, Figures, Measured, machine, multiply, run, say, synchronize
from system.errors import reason
from system.hardware import computes_bfloat16

SECONDS = 0.7  # how long a measurement of speed takes, if an epoch has enough steps
PROBED, RECORDED = 2, 3  # steps that tell how many to time, and steps whose work on the GPU is recorded
MIDDLE, LARGE = 128, 512  # batch sizes besides the config's own
PRECISIONS = ("bf16-mixed", "16-mixed", "32-true")
PROCESSES = (2, 4, 8)
NUM_IMAGES = {256: 16_000, 128: 40_000, 100: 40_000}  # by size; four fifths are trained on: 25 steps of 512 at 256 px
ON_THE_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # what a trace calls a GPU's work
SHOWN = {"images_per_second": ",.0f", "waits": ".0%", "gpu_gb": ".1f"}

Way = Literal["bare", "ours"]
WAYS: tuple[Way, ...] = get_args(Way)
What = Literal["speed", "waiting"]


class Setting(NamedTuple):
    """A line of the table."""

    system: str
    batch_size: int  # in each process
    precision: str
    is_compiled: bool = False
    processes: int = 1


class Measurement(NamedTuple):
    setting: Setting
    way: Way
    what: What = "speed"


Results = dict[Setting, dict[Way, dict[str, Any]]]


def main(out: Path, measurements: Iterable[Measurement] | None = None) -> None:
    """Take the measurements, by default all of the plan, and write them to ``out`` after each."""
    where = machine()
    results: Results = defaultdict(dict)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"PIGMENT_CACHE": f"{scratch}/cache", "WANDB_MODE": "offline"}
        roots = {size: draw(Path(scratch, str(size)), size, number) for size, number in NUM_IMAGES.items()}
        for one in tqdm(measurements or tuple(plan()), desc="Benchmarks"):
            figures = results[one.setting].setdefault(one.way, {})
            if "failed" in figures:
                continue
            root = roots[SYSTEMS[one.setting.system].size]
            figures |= attempt(one, f"--data.init_args.root={root}", f"--trainer.default_root_dir={scratch}/runs")
            if "busy_s_per_image" in figures:
                figures["waits"] = 1 - figures["busy_s_per_image"] * figures["images_per_second"]
            rows = [
                {**setting._asdict(), "way": way, **measured}
                for setting, ways in results.items()
                for way, measured in ways.items()
            ]
            out.write_text(json.dumps({"machine": where, "results": rows}, indent=1))
    print(table(where, results))


def plan() -> Iterator[Measurement]:
    """Yield what to measure, the most important first."""
    usual, *others = PRECISIONS if computes_bfloat16(DEVICE.type) else PRECISIONS[1:]
    own = [Setting(name, system.batch_size, usual) for name, system in SYSTEMS.items()]
    middle, large = ([setting._replace(batch_size=size) for setting in own] for size in (MIDDLE, LARGE))
    in_others = [setting._replace(precision=precision) for precision in others for setting in own]
    for setting in (*own, *large, *in_others):
        yield Measurement(setting, "bare")
        yield Measurement(setting, "ours")
    # the profiler stays loaded and may slow the host, so the speeds that the host decides are measured before
    for setting in (*own, *large):
        yield Measurement(setting, "bare", "waiting")
        yield Measurement(setting, "ours", "waiting")
    for number in PROCESSES:
        if number <= torch.accelerator.device_count():
            for setting in (*own, *middle):
                yield Measurement(setting._replace(processes=number), "ours")
    for setting in middle:
        yield Measurement(setting, "bare")
    for precision in others:
        for setting in (*middle, *large):
            yield Measurement(setting._replace(precision=precision), "bare")
    for setting in own:  # compiling takes longest
        yield Measurement(setting._replace(is_compiled=True), "bare")
        yield Measurement(setting._replace(is_compiled=True), "ours")
    for setting in large:
        yield Measurement(setting._replace(is_compiled=True), "bare")


def attempt(one: Measurement, *options: str) -> dict[str, Any]:
    """Measure, or return what failed: a batch may be too large for the GPU's memory."""
    gc.collect()
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats()
    torch.compiler.reset()
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return measure(one, *options)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except SystemExit as error:
        told = said.getvalue() + str(error)  # what train.py says in this process, or in others
        return {"failed": re.split("error: ", told, flags=re.IGNORECASE)[-1].partition("\n")[0]}
    except Exception as error:  # a compiler or a kernel may fail in a bare step, and the others are still to come
        return {"failed": reason(error)}


def measure(one: Measurement, *options: str) -> Figures:
    """Measure in this process or, with several GPUs, in others; ``options`` are train.py's."""
    name, batch_size, precision, is_compiled, processes = one.setting
    if one.way == "bare":
        figures: Figures = {}
        step = bare.make_step(name, precision, batch_size, is_compiled)
        for _ in WATCHES[one.what](figures, batch_size, sys.maxsize):
            step()
        return figures
    options += (
        f"--data.init_args.batch_size={batch_size}",
        f"--trainer.precision={precision}",
        f"--compile={is_compiled}",
    )
    if processes > 1:
        several = (f"--trainer.devices={processes}", "--trainer.strategy=ddp")
        return run("benchmarks.gpu", name, one.what, *options, *several)
    return fit(name, one.what, *options)


def fit(name: str, what: str, *options: str) -> Figures:
    watch = {"class_path": "benchmarks.gpu.Watch", "init_args": {"what": what}}
    return ours.fit(name, f"--trainer.callbacks+={json.dumps(watch)}", *options)


class Watch(Callback):
    """Measures steps, each from its start to the start of the next, but not the end of the epoch, which takes longer.

    Raises:
        Measured: when all steps are measured.
    """

    def __init__(self, what: What) -> None:
        self.what, self.figures = what, Figures()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_images = trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        self.steps = WATCHES[self.what](self.figures, num_images, int(trainer.num_training_batches))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if next(self.steps, self) is self:
            raise Measured(self.figures)


def timed(figures: Figures, num_images: int, num_steps: int) -> Iterator[None]:
    """Yield before each of at most ``num_steps`` steps of ``num_images`` each, and time them."""
    for _ in range(WARM_UP):
        yield
    synchronize()
    begun = time.perf_counter()
    for _ in range(PROBED):
        yield
    synchronize()
    wanted = round(SECONDS / (time.perf_counter() - begun) * PROBED)
    agreed = [max(1, min(wanted, num_steps - WARM_UP - PROBED - 1))]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(agreed)
    start = time.perf_counter()
    for _ in range(agreed[0]):
        yield
    synchronize()
    figures["images_per_second"] = num_images * agreed[0] / (time.perf_counter() - start)
    figures["gpu_gb"] = torch.accelerator.max_memory_allocated() / 1e9


def recorded(figures: Figures, num_images: int, num_steps: int) -> Iterator[None]:
    """Yield before each of a few steps, and record how long the GPU works on an image."""
    for _ in range(WARM_UP):
        yield
    synchronize()
    with profile() as trace:
        for _ in range(RECORDED):
            yield
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        trace.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    figures["busy_s_per_image"] = busy_seconds(events) / (RECORDED * num_images)


WATCHES = {"speed": timed, "waiting": recorded}


def busy_seconds(events: list[dict[str, Any]]) -> float:
    """Return for how long a GPU works on at least one of a trace's events."""
    busy = until = 0.0
    for start, duration in sorted((event["ts"], event["dur"]) for event in events if event.get("cat") in ON_THE_GPU):
        busy += max(0.0, start + duration - max(start, until))
        until = max(until, start + duration)
    return busy / 1e6


def draw(root: Path, size: int, number: int) -> Path:
    """Write images of random colors, no two with the same bytes; what an image shows does not change a step's time."""
    few = root / "few"
    few.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(10):
        image = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8))
        image.resize((size, size)).save(few / f"{index}.jpg")
    return multiply(sorted(few.iterdir()), root / "many", number)


def table(machine: dict[str, str], results: Results) -> str:
    """Tabulate images a second, the share of time in which the GPU waits, and the most memory held on it."""
    columns = ["network", "batch", "precision", *WAYS, "ours / bare"]
    columns += [f"{what}, {way}" for what in ("waits", "GB") for way in WAYS]
    lines = ["  ".join(f"{what}: {value}" for what, value in machine.items()), ""]
    lines += [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for setting in sorted(results, key=lambda one: (list(SYSTEMS).index(one.system), *one[1:])):
        how = setting.precision + ", compiled" * setting.is_compiled
        how += f", {setting.processes} GPUs" if setting.processes > 1 else ""
        ways = [results[setting].get(way, {}) for way in WAYS]
        speeds, waits, memory = (
            [format(way[figure], spec) if figure in way else way.get("failed", "") for way in ways]
            for figure, spec in SHOWN.items()
        )
        bare, ours = (way.get("images_per_second") for way in ways[:2])
        ratio = f"{ours / bare:.2f}" if ours and bare else ""
        cells = [setting.system, str(setting.batch_size), how, *speeds, ratio, *waits, *memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    rank_zero_only(say)(**fit(*sys.argv[1:]))
