"""What a simulated GPU can show: every config runs on a GPU, and the host does not wait for it."""

import inspect
import json
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from resuming import callback
from tests.fake_cuda import arrive, evaluate, pretend, run_on_fake_gpu
from tests.test_resuming import run_two
from tests.world import CONFIGS, live_in, tiny, write_fruits, write_painting, write_paintings

COLORIZERS = sorted((CONFIGS / "colorization").glob("*.yaml"))
SHALLOW_RMSPROP, SHALLOW_ADAM, PALETTE = (
    CONFIGS / "colorization" / f"{name}.yaml" for name in ("1_shallow_rmsprop", "4_shallow_adam", "10_palette")
)
VAE, CALIBRATED = CONFIGS / "vae.yaml", CONFIGS / "vae_calibrated.yaml"
ALL = [*COLORIZERS, VAE, CALIBRATED, CONFIGS / "vae_residual.yaml"]
FEW = {
    "fit": ["--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0"],
    "test": ["--trainer.limit_test_batches=2"],
    "predict": ["--trainer.limit_predict_batches=2"],
}
UNWATCHED = ["--trainer.log_every_n_steps=1000", "--trainer.enable_progress_bar=false"]  # both read the loss


class FakeGPU:
    """A process with a simulated GPU. All tests share it, because many things are slower the first time."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor) -> None:
        self.folder, self.pool = folder, pool
        self.fruits, self.paintings = write_fruits(folder / "fruits"), write_paintings(folder / "paintings")

    def run(self, stage: str, config: Path, *more: str) -> dict[str, list[str]]:
        """Run a stage of train.py in the config's own folder, and return what was noted in each phase."""
        (folder := self.folder / config.stem).mkdir(exist_ok=True)
        arguments = [
            "--trainer.accelerator=gpu",
            "--trainer.devices=1",
            "--trainer.precision=bf16-mixed",
            *UNWATCHED,
            "--data.init_args.batch_size=2",
            *FEW[stage],
        ]
        root = self.paintings if config in COLORIZERS else self.fruits
        return self.pool.submit(run_on_fake_gpu, folder, tiny(stage, root, *arguments, *more, config=config)).result()


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGPU]:
    folder = tmp_path_factory.mktemp("gpu")
    forking = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as monkeypatch, ProcessPoolExecutor(1, forking, initializer=pretend) as pool:
        live_in(folder, monkeypatch)
        pool.submit(os.getpid).result()  # forks it
        yield FakeGPU(folder, pool)


def ordinary_steps(notes: dict[str, list[str]]) -> list[str]:
    """Return what was noted in steps 2 to 5 of 7, after everything has warmed up and before the epoch ends."""
    return [note for batch_idx in (2, 3, 4, 5) for note in notes[f"train 0 {batch_idx}"]]


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.stem)
def test_every_config_runs_on_a_gpu_whose_host_never_waits_for_an_ordinary_step(config: Path, gpu: FakeGPU) -> None:
    # torch's clipping takes the simulated gradients for a CPU's
    unclipped = ["--trainer.gradient_clip_val=null"] if config == PALETTE else []
    notes = gpu.run("fit", config, *unclipped)
    assert ordinary_steps(notes) == []
    for stage in ("test", "predict"):
        gpu.run(stage, config, "--ckpt_path=last")


@pytest.mark.parametrize("config", [SHALLOW_ADAM, VAE], ids=lambda config: config.stem)
def test_neither_does_one_that_scales_its_loss_for_float16(config: Path, gpu: FakeGPU) -> None:
    assert ordinary_steps(gpu.run("fit", config, "--trainer.precision=16-mixed")) == []


def test_only_an_optimizer_that_is_not_fused_waits_to_know_whether_float16_held_its_gradients(gpu: FakeGPU) -> None:
    notes = ordinary_steps(gpu.run("fit", SHALLOW_RMSPROP, "--trainer.precision=16-mixed"))  # it has no fused kernel
    assert [note.partition(":")[0] for note in notes] == ["aten._local_scalar_dense.default"] * 4
    assert all("lightning/pytorch/plugins/precision/amp.py" in note for note in notes)


class Wait(Callback):
    """Read the loss in every step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        outputs["loss"].item()


def test_a_step_that_waits_is_found_with_its_line(gpu: FakeGPU) -> None:
    notes = ordinary_steps(gpu.run("fit", SHALLOW_ADAM, f"--trainer.callbacks+={__name__}.Wait"))
    line = inspect.getsourcelines(Wait.on_train_batch_end)[1] + 1
    assert notes == [f"aten._local_scalar_dense.default: tests/test_fake_cuda.py:{line}"] * 4


@pytest.mark.parametrize(
    ("expression", "waits"),
    [
        ("x[0].item()", True),
        ("bool(x.any())", True),
        ("x.tolist()", True),
        ("x.cpu()", True),
        ("x.to('cpu', non_blocking=True)", False),
        ("torch.empty(3).copy_(x, non_blocking=True)", True),
        ("torch.empty(3, pin_memory=True).copy_(x, non_blocking=True)", False),
        ("torch.empty(3, pin_memory=True).copy_(x)", True),
        ("torch.ones(3).to('cuda:0')", True),
        ("torch.ones(3).to(x, non_blocking=True)", True),
        ("torch.ones(3).pin_memory()[:2].to('cuda:0', non_blocking=True)", False),
        ("torch.ones(3).pin_memory().to('cuda:0')", True),
        ("torch.tensor([1.0], device='cuda:0')", True),
        ("torch.ones(3, device='cuda:0') + torch.tensor(1.0)", False),
        ("x.to(torch.bfloat16).to('cuda:0').to(x)", False),
        ("x.nonzero()", True),
        ("x[x > 0]", True),
        ("x[[0, 1]]", True),
        ("x[(x > 0).long()]", False),
        ("x.masked_fill_(x > 0, 1)", False),
        ("torch.equal(x, x)", True),
        ("torch.cuda.synchronize()", True),
        ("torch.cuda.Event().synchronize()", True),
    ],
)
def test_what_waits_is_known(expression: str, waits: bool, gpu: FakeGPU) -> None:
    assert gpu.pool.submit(evaluate, expression).result() == waits


def test_tensors_of_two_devices_do_not_mix(gpu: FakeGPU) -> None:
    for expression in ("x + torch.ones(3)", "torch.ones(3).add_(x)", "torch.stack([x.sum(), torch.tensor(1.0)])"):
        with pytest.raises(RuntimeError, match="same device"):
            gpu.pool.submit(evaluate, expression).result()
    with pytest.raises(TypeError, match="can't convert cuda"):
        gpu.pool.submit(evaluate, "x.numpy()").result()


def test_values_that_nobody_waited_for_are_not_there(gpu: FakeGPU) -> None:
    assert gpu.pool.submit(arrive).result() == ([0, 0, 0], [0, 1, 2])


@pytest.mark.parametrize("config", [SHALLOW_ADAM, CALIBRATED], ids=lambda config: config.stem)
def test_processes_share_only_their_gradients_in_an_ordinary_step(
    config: Path, paintings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "ASK_SECONDS", 3600)  # else a slow step also agrees on whether to stop
    for index in range(10):
        write_painting(paintings / "training_set" / "painting" / f"more_{index}.jpg", 0.5, np.random.default_rng(index))
    more = ["--data.init_args.batch_size=2", *UNWATCHED, "--trainer.callbacks+=tests.fake_cuda.NoteCollectives"]
    assert run_two(tiny("fit", paintings, *more, config=config)) == 0
    for rank in (0, 1):
        notes = json.loads(Path(f"notes_{rank}.json").read_text())["train 1 2"]  # of six; processes ask before 1 and 3
        others = [note for note in notes if not note.startswith("gradients: ")]
        assert len(notes) > len(others)
        if config == CALIBRATED:  # whose variance is that of the batch of all processes
            assert re.fullmatch(r"c10d::all(reduce|gather)_: .*(epoch_means|vae)\.py:\d+", others.pop())
        assert others == []
