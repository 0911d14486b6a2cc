"""Which device is used, and how, on machines unlike this one."""

import os
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from colorization.__main__ import main as colorize
from study.training import visible_devices
from system.errors import PigmentError
from system.hardware import best_device, within_memory
from tests.test_resuming import run_two
from tests.world import CONFIGS, last, tiny
from train import PigmentCLI, main
from vae.__main__ import main as play

SHALLOW = CONFIGS / "colorization" / "4_shallow_adam.yaml"
AUTO = ["--trainer.accelerator=auto", "--trainer.precision=bf16-mixed"]
TOO_OLD = (  # torch's own words
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
TOO_LARGE = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 13"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let the driver's library count as many GPUs as asked for; none can compute, and CUDA has yet to start."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "_initialized", False)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    precision = torch.get_float32_matmul_precision()
    yield lambda number: monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: number)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def _old_driver(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError(TOO_OLD)

    gpus(2)
    monkeypatch.setattr(torch._C, "_cuda_init", refuse)


@pytest.fixture
def four_gpus(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs like a T4, which emulates bfloat16; runs are set up, and end before they would compute."""
    gpus(4)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(Trainer, "fit", wraps(Trainer.fit)(lambda *args, **kwargs: None))  # the command line reads it


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "No GPU can be used" in line]


@pytest.mark.usefixtures("_old_driver")
def test_a_driver_that_is_too_old_leaves_the_cpu_and_is_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert torch.cuda.is_available()
    assert best_device() == torch.device("cpu")
    assert said(capfd) == [f"No GPU can be used: {TOO_OLD}"]
    assert best_device() == torch.device("cpu")
    assert not torch.cuda.is_available()
    assert said(capfd) == []


@pytest.mark.usefixtures("_old_driver")
def test_every_command_goes_on_without_a_gpu_whose_driver_is_too_old(
    paintings: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, vae_run: PigmentCLI
) -> None:
    def forget() -> None:
        assert len(said(capfd)) == 1
        del os.environ["CUDA_VISIBLE_DEVICES"]  # as a new process begins

    run = main(tiny("fit", paintings, *AUTO, config=SHALLOW))
    assert any(line.endswith(" on 1 x cpu") for line in caplog.messages)
    forget()
    assert run_two(tiny("fit", paintings, *AUTO, config=SHALLOW)) == 0
    forget()
    with pytest.raises(SystemExit, match="2"):
        main(tiny("fit", paintings, "--trainer.accelerator=gpu", config=SHALLOW))
    error = capfd.readouterr().err
    assert f"No GPU can be used: {TOO_OLD}\nerror: No supported gpu backend found!" in error
    assert "Traceback" not in error
    del os.environ["CUDA_VISIBLE_DEVICES"]
    assert colorize([str(paintings / "training_set"), f"--ckpt={last(run)}", "--out=colorized"]) == 0
    forget()
    assert play(["sample", f"--ckpt={last(vae_run)}", "--out=samples.png"]) == 0
    forget()
    assert visible_devices() == [{}]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # the runs that a study starts inherit it


@pytest.mark.usefixtures("_old_driver")
def test_a_run_on_the_cpu_leaves_the_gpu_alone(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(tiny("fit", fruits, "--trainer.accelerator=cpu"))
    assert said(capfd) == []


@pytest.mark.usefixtures("four_gpus")
def test_whatever_uses_the_gpu_computes_alike() -> None:
    torch.set_float32_matmul_precision("highest")
    assert best_device() == torch.device("cuda")
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("four_gpus")
def test_where_bfloat16_is_emulated_a_gpu_has_something_faster_than_float32(
    fruits: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    for accelerator in ("gpu", "cpu"):
        main(tiny("fit", fruits, f"--trainer.accelerator={accelerator}", "--trainer.precision=bf16-mixed"))
        (line,) = [line for line in caplog.messages if "precision is 32-true instead." in line]
        assert ("16-mixed should be faster" in line) == (accelerator == "gpu")
        caplog.clear()


@pytest.mark.usefixtures("four_gpus")
def test_demo_images_take_one_gpu_unless_more_are_asked_for(
    fruits: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_up(*more: str) -> list[str]:
        caplog.clear()
        main(tiny("fit", fruits, *AUTO, *more))
        return caplog.messages

    demo, told = "--data.init_args.root=null", "The demo images are few, so one GPU is used; --trainer.devices 4 uses"
    *before, model = set_up(demo)
    assert model.endswith(" on 1 x cuda")
    assert any(told in line for line in before)
    *before, model = set_up(demo, "--trainer.devices=4")
    assert model.endswith(" on 4 x cuda, 16 images in a step")
    assert not any(told in line for line in before)
    *_, model = set_up("--trainer.accumulate_grad_batches=3")
    assert model.endswith(" on 4 x cuda, 48 images in a step")
    monkeypatch.setenv("WORLD_SIZE", "4")  # as torchrun does
    assert not any(told in line for line in set_up(demo))


def test_only_training_tunes_cudnn(vae_run: PigmentCLI, monkeypatch: pytest.MonkeyPatch) -> None:
    config = vae_run.run_folder / "config.yaml"
    assert yaml.safe_load(config.read_text())["trainer"]["benchmark"]
    for stage in ("test", "predict"):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        main([stage, f"--config={config}", f"--ckpt_path={last(vae_run)}", "--trainer.default_root_dir=used"])
        assert not torch.backends.cudnn.benchmark


def test_out_of_memory_is_told_with_a_remedy() -> None:
    for fill in (lambda: torch.empty(2**50), allocate_on_a_gpu):
        with pytest.raises(PigmentError, match=r"^out of memory\. Ask for less\.$"), within_memory("Ask for less."):
            fill()


def allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError(TOO_LARGE)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), within_memory("Ask for less."):
        raise RuntimeError("shape '[3]' is invalid for input of size 2")


class Fill(Callback):
    """Ask for more memory than there is."""

    def on_train_batch_start(self, *args: Any) -> None:
        torch.empty(2**50)


def test_a_run_that_is_out_of_memory_ends_in_a_line(fruits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(tiny("fit", fruits, f"--trainer.callbacks+={__name__}.Fill"))
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == "error: out of memory. Lower --data.init_args.batch_size."
    assert "Traceback" not in said
