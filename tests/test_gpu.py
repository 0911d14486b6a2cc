"""What only a GPU can show: pytest -m gpu, some three minutes with --numprocesses 8.

Nothing here touches the GPU in pytest's own process, as CUDA does not survive a fork: all work is done in forked ones.
"""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torch._dynamo.utils import counters

import train
from colorization.__main__ import main as colorize
from colorization.color import lab_to_rgb, rgb_to_lab
from colorization.metrics import ciede2000
from images.similarity import psnr, ssim
from tests.test_configs import RECIPES
from tests.test_precision import demo  # noqa: F401 - a fixture
from tests.test_resuming import (
    CALIBRATED,
    COLORIZER,
    GO_ON,
    STOPS,
    assert_same,
    at,
    everything,
    metrics,
    only,
    run,
)
from tests.test_samples import SAMPLERS
from tests.world import CONFIGS, tiny, write_painting
from vae.__main__ import main as sample
from vae.metrics import Pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # a GPU's machine has its own versions of torch and the rest
]
ON_GPU = ["--trainer.accelerator=gpu", "--trainer.devices=1"]
EXACT = ["--trainer.benchmark=false", "--trainer.deterministic=true"]  # with which the same run ends the same
HALF = ["bf16-mixed", "16-mixed"]
Result = TypeVar("Result")


def forked(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function of this module in a forked process, and return or raise what it does."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *args).result()


def gpu(stage: str, root: Path, *more: str, config: Path = CONFIGS / "vae.yaml") -> list[str]:
    """train.py's arguments for a config in miniature on one GPU."""
    return tiny(stage, root, *ON_GPU, *more, config=config)


def logged(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in metrics(folder) if row.get(name)]


@pytest.fixture
def root(config: Path, request: pytest.FixtureRequest) -> Path:
    """The images that a config is for."""
    return request.getfixturevalue("paintings" if config.parent.name == "colorization" else "fruits")


def by_config(*configs: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", configs, ids=lambda config: config.stem)


@by_config(*RECIPES)
@pytest.mark.parametrize("precision", [*HALF, "32-true"])
def test_every_config_trains_as_on_a_cpu(config: Path, precision: str, root: Path) -> None:
    assert run(tiny("fit", root, "--trainer.default_root_dir=cpu", config=config)) == 0
    given = [f"--trainer.precision={precision}", "--trainer.default_root_dir=gpu"]
    assert run(gpu("fit", root, *given, config=config)) == 0
    found, expected = only("gpu"), only("cpu")
    for row in metrics(found):
        assert all(isfinite(float(value)) for value in row.values() if value)
    # each device draws its own noise: from one draw to the next, the tenth colorizer's loss varies by 0.6 %
    assert logged(found, "train/loss_step")[0] == pytest.approx(logged(expected, "train/loss_step")[0], rel=0.04)
    if precision != "16-mixed":  # which skips its first steps, until the scale of the gradients fits
        assert logged(found, "train/loss")[0] == pytest.approx(logged(expected, "train/loss")[0], rel=0.05)
        assert logged(found, "val/loss")[0] == pytest.approx(logged(expected, "val/loss")[0], rel=0.05)
    test = [*given, "--trainer.default_root_dir=tested", f"--ckpt_path={found}/checkpoints/last.ckpt"]
    assert run(gpu("test", root, *test, config=config)) == 0
    (row,) = metrics(only("tested"))
    assert all(isfinite(float(value)) for value in row.values())
    assert isfinite(float(row["test/ssim"]))


class NoWaiting(Callback):
    """Make it an error to wait for the GPU from the end of one ordinary step to the end of a later one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        torch.cuda.set_sync_debug_mode("error" if 1 <= batch_idx < 5 else "default")  # of steps 0 to 6


@by_config(*RECIPES)
@pytest.mark.parametrize(
    ("precision", "strategy"),
    [("bf16-mixed", "auto"), ("16-mixed", "auto"), ("32-true", "auto"), ("bf16-mixed", "ddp")],
)
def test_the_host_never_waits_in_an_ordinary_step(config: Path, precision: str, strategy: str, root: Path) -> None:
    if precision == "16-mixed" and ("rmsprop" in config.stem or config.stem == "10_palette"):
        pytest.skip(
            "RMSprop cannot be fused, nor an optimizer with clipping, so the GradScaler itself waits in every step"
        )
    steps = [
        "--data.init_args.batch_size=2",
        f"--trainer.precision={precision}",
        f"--trainer.strategy={strategy}",
        "--trainer.log_every_n_steps=50",
        "--trainer.enable_progress_bar=false",  # it waits when it draws, twice a second
        "--trainer.max_epochs=1",
        f"--trainer.callbacks+={__name__}.NoWaiting",
    ]
    assert run(gpu("fit", root, *steps, config=config)) == 0


def measure(device: str) -> dict[str, np.ndarray]:
    """Everything that is measured or converted, as float64 on the CPU, from the same images on any device."""
    torch.set_float32_matmul_precision("high")  # as train.py does
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(8, 3, 64, 64, generator=generator)
    images = (truth + 0.05 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    low, high = torch.tensor([[0.0, -300, -300], [100, 300, 300]]).view(2, 3, 1, 1)
    wild = low + torch.rand(truth.shape, generator=generator) * (high - low)  # colors far beyond the gamut
    truth, images, wild = truth.to(device), images.to(device), wild.to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        measured = {
            "lab": rgb_to_lab(truth),
            "there_and_back": lab_to_rgb(rgb_to_lab(truth)),
            "wild": lab_to_rgb(wild),
            "psnr": psnr(images, truth),
            "ssim": ssim(images, truth),
            "ciede2000": ciede2000(rgb_to_lab(images), rgb_to_lab(truth)),
            "features": Pixels()(truth),
        }
    return {name: values.double().cpu().numpy() for name, values in measured.items()}


def test_lab_and_metrics_are_the_cpus_to_float32() -> None:
    within = {  # float32's; TF32 would be off by a hundred times as much
        "lab": 1e-3,
        "there_and_back": 1e-4,
        "psnr": 1e-4,
        "ssim": 1e-5,
        "ciede2000": 5e-3,
        "features": 2e-6,
    }
    found, expected = forked(measure, "cuda"), forked(measure, "cpu")
    off = {name: np.abs(found[name] - expected[name]) for name in found}
    assert {name: off[name].max() for name, limit in within.items() if not off[name].max() < limit} == {}
    assert np.quantile(off["wild"], 0.95) < 1e-4  # the others are one bisection further
    assert off["wild"].max() < 2 / 255


def test_measures_of_samples_are_the_cpus(fruits: Path) -> None:
    assert run(gpu("fit", fruits)) == 0
    checkpoint = f"--ckpt_path={only('runs')}/checkpoints/last.ckpt"
    assert run(gpu("test", fruits, checkpoint, "--trainer.default_root_dir=gpu")) == 0
    assert run(tiny("test", fruits, checkpoint, "--trainer.default_root_dir=cpu")) == 0
    (found,), (expected,) = metrics(only("gpu")), metrics(only("cpu"))
    for name in expected.keys() - {f"test/{sampler}_kid" for sampler in SAMPLERS}:  # which is of random subsets
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.02, abs=0.01), name


@pytest.mark.parametrize("config", ["vae", "colorization/4_shallow_adam", "colorization/6_deep_adam"])
def test_bfloat16_ends_the_first_epoch_as_float32_does(config: str, demo: Path) -> None:  # noqa: F811
    losses: dict[str, list[float]] = {"train/loss": [], "val/loss": []}
    for precision in ("bf16-mixed", "32-true"):
        epoch = ["--data.init_args.size=32", "--data.init_args.batch_size=16", "--trainer.max_epochs=1"]
        epoch += [f"--trainer.precision={precision}", f"--trainer.default_root_dir={precision}"]
        assert run(gpu("fit", demo, *epoch, config=CONFIGS / f"{config}.yaml")) == 0
        for name, values in losses.items():
            values += logged(only(precision), name)
    for name, within in {"train/loss": 0.02, "val/loss": 0.05}.items():
        in_bfloat16, in_float32 = losses[name]
        assert in_bfloat16 != in_float32
        assert in_bfloat16 == pytest.approx(in_float32, rel=within)


@by_config(*RECIPES)
def test_the_same_run_ends_the_same(config: Path, root: Path) -> None:
    arguments = gpu("fit", root, "--trainer.precision=bf16-mixed", *EXACT, config=config)
    assert run(arguments) == 0
    assert run([*arguments, "--trainer.default_root_dir=again"]) == 0
    assert_same(only("again"), expected=only("runs"))


@by_config(CALIBRATED, COLORIZER)
@pytest.mark.parametrize(
    ("precision", "signum"),
    [("bf16-mixed", signal.SIGTERM), ("16-mixed", signal.SIGTERM), ("16-mixed", signal.SIGKILL)],
    ids=["bf16", "16", "16-killed"],
)
def test_a_run_that_is_stopped_anywhere_ends_as_if_it_were_not(
    config: Path, precision: str, signum: int, root: Path
) -> None:
    arguments = gpu("fit", root, "--trainer.max_epochs=3", f"--trainer.precision={precision}", *EXACT, config=config)
    assert run(arguments) == 0
    arguments += ["--trainer.default_root_dir=stopped", GO_ON]
    # SIGKILL saves nothing, so a save in every step lets the run go on from the step before
    arguments += ["--trainer.callbacks+={class_path: callbacks.SaveLast, init_args: {every_n_train_steps: 1}}"]
    status = 128 + signum if signum == signal.SIGTERM else -signum
    for hook, epoch, *batch_idx in STOPS:
        assert run([*arguments, at(hook, epoch, sum(batch_idx), signum)]) == status
    assert run(arguments) == 0
    assert_same(max(Path("stopped").iterdir()), expected=only("runs"))  # others may lack a checkpoint


@by_config(CALIBRATED, COLORIZER)
def test_what_differs_with_the_defaults_is_reported(
    config: Path, root: Path, record_property: Callable[[str, object], None]
) -> None:
    arguments = gpu("fit", root, "--trainer.precision=bf16-mixed", config=config)
    for stops in ((), STOPS[:2]):
        more = [f"--trainer.default_root_dir={len(stops)}", GO_ON]
        for stop in stops:
            assert run([*arguments, *more, at(*stop)]) == 143
        assert run([*arguments, *more]) == 0
    assert run([*arguments, "--trainer.default_root_dir=again"]) == 0
    once, again, resumed = (everything(only(folder)) for folder in ("0", "again", "2"))
    for what, other in {"the same run again": again, "resumed": resumed}.items():
        differs = sorted(name for name in once.keys() | other.keys() if once.get(name) != other.get(name))
        record_property(f"{config.stem}, {what}", f"{len(differs)} of {len(once)} differ: {differs[:5]}")
        print(f"{config.stem}, {what}: {len(differs)} of {len(once)} differ: {differs[:5]}")


def fit(arguments: list[str]) -> int:
    """Train in this process, and return how many graphs were compiled."""
    train.main(arguments)
    return counters["stats"]["unique_graphs"]


@by_config(CONFIGS / "vae.yaml", COLORIZER, COLORIZER.with_name("7_resnet_adam.yaml"))
def test_compiled_networks_learn_the_same(config: Path, root: Path) -> None:
    for compiled in ("false", "true"):
        more = [f"--compile={compiled}", f"--trainer.default_root_dir={compiled}"]
        if "resnet" in config.stem:  # torch 2.11 cannot compile the gradient of its last features if they are 1 x 1
            more.append("--data.init_args.size=64")
        assert (forked(fit, gpu("fit", root, *more, config=config)) > 0) == (compiled == "true")
    found, expected = (logged(only(compiled), "train/loss") for compiled in ("true", "false"))
    assert found == pytest.approx(expected, rel=0.02)


@by_config(CALIBRATED, COLORIZER)
def test_one_process_over_nccl_learns_the_same(config: Path, root: Path) -> None:
    arguments = gpu("fit", root, "--trainer.precision=bf16-mixed", *EXACT, config=config)
    assert run(arguments) == 0
    assert run([*arguments, "--trainer.strategy=ddp", "--trainer.default_root_dir=nccl"]) == 0
    assert metrics(only("nccl")) == metrics(only("runs"))


class TwoOnOne(DDPStrategy):
    """Two processes that share the first GPU, which NCCL refuses."""

    def __init__(self) -> None:
        super().__init__(parallel_devices=[torch.device("cuda", 0)] * 2, process_group_backend="gloo")


def run_script(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run train.py as a user does: Lightning starts more processes with the same command line."""
    command = [sys.executable, train.__file__, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150)


def assert_close(folder: Path, expected: Path) -> None:
    """Compare what several processes logged and learned with what one did."""
    for row, wanted in zip(metrics(folder), metrics(expected), strict=True):
        for name in row.keys() - {"train/loss_step"}:  # which is rank zero's
            if wanted[name]:
                assert float(row[name]) == pytest.approx(float(wanted[name]), rel=0.01), name


def sixteen(paintings: Path) -> Path:
    """Add to the 14 paintings to train on, so that batches of four divide them evenly, and of two in two processes."""
    for name in ("14.jpg", "15.jpg"):
        write_painting(paintings / "training_set" / "painting" / name, 0.5, np.random.default_rng(len(name)))
    return paintings


def test_two_processes_learn_what_one_does(paintings: Path) -> None:
    arguments = gpu("fit", sixteen(paintings), config=COLORIZER)
    assert run(arguments) == 0
    two = ["--data.init_args.batch_size=2", "--trainer.default_root_dir=two"]
    done = run_script([*arguments, *two, "--trainer.strategy={class_path: tests.test_gpu.TwoOnOne}"])
    assert done.returncode == 0, done.stdout
    assert "2 x " in done.stdout
    assert_close(only("two"), expected=only("runs"))


def peak_memory(arguments: list[str]) -> tuple[int, int]:
    """Colorize in this process, and return the exit status and the most bytes of the GPU that were in use."""
    return colorize(arguments), torch.cuda.max_memory_allocated()


def test_24_megapixels_are_colorized_within_memory(paintings: Path) -> None:
    wide = ["--data.init_args.size=256", "--trainer.max_epochs=1"]
    assert run(gpu("fit", paintings, *wide, config=COLORIZER)) == 0
    y, x = np.mgrid[0:6:4000j, 0:9:6000j]
    picture = np.stack([127 + 100 * np.sin(x + phase) * np.cos(y) for phase in (0, 0.1, 0.2)], axis=-1)
    Image.fromarray(picture.astype(np.uint8)).save("large.jpg")
    checkpoint = only("runs") / "checkpoints" / "last.ckpt"
    status, peak = forked(peak_memory, ["large.jpg", f"--ckpt={checkpoint}", "--out=colored"])
    assert status == 0
    assert Image.open("colored/large.jpg").size == (6000, 4000)
    assert 0 < peak < 2**29, f"{peak:,} bytes"  # the picture alone would take 288 MB in float32, its Lab as much


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@by_config(CALIBRATED, COLORIZER)
def test_a_checkpoint_from_the_gpu_serves_on_a_cpu(config: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anywhere = ["--trainer.accelerator=auto", "--trainer.devices=1"]
    assert run(tiny("fit", root, *anywhere, "--trainer.precision=bf16-mixed", config=config)) == 0
    checkpoint = f"{only('runs')}/checkpoints/last.ckpt"
    for device in ("gpu", "cpu"):
        if device == "cpu":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        given = [*anywhere, f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={device}"]
        assert run(tiny("validate", root, *given, config=config)) == 0
        if config == COLORIZER:
            assert forked(colorize, [str(root), f"--ckpt={checkpoint}", f"--out={device}-pictures"]) == 0
        else:
            assert forked(sample, ["sample", f"--ckpt={checkpoint}", f"--out={device}-pictures/samples.png"]) == 0
    (found,), (expected,) = metrics(only("cpu")), metrics(only("gpu"))
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=0.01, abs=1e-3), name
    pictures = [path for path in Path("gpu-pictures").rglob("*") if path.is_file()]
    assert pictures
    for path in pictures:  # TF32 moves a value by a level or two, and JPEG some of them further
        off = np.abs(pixels(path) - pixels(Path("cpu-pictures", *path.parts[1:])))
        assert off.mean() < 0.5
        assert off.max() <= 10
    more = [*anywhere, GO_ON, "--trainer.max_epochs=3"]
    assert run(tiny("fit", root, *more, config=config)) == 0
    assert len(logged(only("runs"), "val/loss")) == 3
