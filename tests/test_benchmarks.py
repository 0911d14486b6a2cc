"""The benchmark computes what training computes, and prints what it measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import gpu, kinds
from benchmarks.__main__ import IN_NOTEBOOKS, NETWORKS, STORES, table
from benchmarks.bare import make_step
from benchmarks.gpu import Measurement, Setting
from benchmarks.systems import SYSTEMS, run
from colorization.weights import PALETTE
from datamodules.demo.fruits import draw_fruit
from resuming.checkpoints import WholeCheckpointIO, load_model
from tests.world import CONFIGS, last, tiny
from train import PigmentCLI, main
from vae import VAE
from vae.weights import FRUIT


class FirstStep(Callback):
    """Keeps what the first step started from, and its loss."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
            self.batch, self.random_state = batch.clone(), torch.get_rng_state()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            self.loss = outputs["loss"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_bare_step_computes_the_loss_of_training(name: str, fruits: Path) -> None:
    system = SYSTEMS[name]
    more = ("--data.init_args.size=32", "--trainer.max_epochs=1", f"--trainer.callbacks+={__name__}.FirstStep")
    trained = main(tiny("fit", fruits, *more, config=CONFIGS / system.config))
    (first,) = (callback for callback in trained.trainer.callbacks if isinstance(callback, FirstStep))
    net = system.make(**{setting: trained.model.hparams[setting] for setting in system.make.keywords})
    net.load_state_dict({key: first.weights[key] for key in net.state_dict()})
    torch.set_rng_state(first.random_state)
    assert net.loss(first.batch).item() == pytest.approx(first.loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_bare_step_has_the_settings_of_training(name: str) -> None:
    system = SYSTEMS[name]
    config = yaml.safe_load((CONFIGS / system.config).read_text())
    data, model = (config[part]["init_args"] for part in ("data", "model"))
    assert (data["size"], data["batch_size"]) == (system.size, system.batch_size)
    settings = {**model, "image_size": data["size"]}
    assert system.make.keywords == {setting: settings[setting] for setting in system.make.keywords}


def test_figures_of_training_are_said(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIGMENT_TRACEBACK")  # without which train.py answers any error itself
    runs = f"--trainer.default_root_dir={fruits.parent / 'runs'}"
    figures = run("benchmarks.ours", "VAE", *tiny("fit", fruits)[2:], "--data.init_args.batch_size=2", runs)
    assert figures.keys() == {"images_per_second", "training_s", "first_step_s", "epoch_end_s", "peak_mb"}
    assert min(figures.values()) > 0
    assert figures["training_s"] * figures["images_per_second"] == pytest.approx(14)  # images to train on


@pytest.mark.slow
def test_use_is_measured() -> None:
    figures = run("benchmarks.use")
    assert figures.keys() == {"in_memory_s", "with_files_s", "hint_s", "peak_mb"}
    assert figures["with_files_s"] > figures["in_memory_s"] > figures["hint_s"] > 0


def break_down() -> NoReturn:
    raise RuntimeError("no kernel")


def test_a_gpu_is_measured_and_every_figure_is_kept_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SYSTEMS["A"]._replace(size=16, options=("--data.init_args.size=16",))
    monkeypatch.setitem(SYSTEMS, "A", small)
    monkeypatch.setitem(SYSTEMS, "broken", small._replace(make=break_down))
    monkeypatch.setattr(gpu, "NUM_IMAGES", {16: 80})
    monkeypatch.setattr(gpu, "SECONDS", 0.0)  # one step
    out = tmp_path / "benchmarks.json"

    def rows() -> list[dict[str, Any]]:
        return json.loads(out.read_text())["results"]

    def measurements() -> Iterator[Measurement]:
        for number, way in enumerate(gpu.WAYS, start=1):
            yield Measurement(Setting("A", 4, "32-true"), way)
            assert len(rows()) == number
            yield Measurement(Setting("A", 4, "32-true"), way, "waiting")
        yield Measurement(Setting("A", 1, "32-true"), "ours")
        yield Measurement(Setting("A", 1, "32-true"), "ours", "waiting")
        yield Measurement(Setting("broken", 4, "32-true"), "bare")

    gpu.main(out, measurements())
    *measured, failed, broken = rows()
    assert [row["way"] for row in measured] == ["bare", "ours"]
    for row in measured:
        assert (row["system"], row["batch_size"], row["precision"]) == ("A", 4, "32-true")
        assert row["images_per_second"] > 0
        assert row["waits"] == pytest.approx(1 - row["busy_s_per_image"] * row["images_per_second"])
        assert (row["busy_s_per_image"] > 0) == (row["gpu_gb"] > 0) == torch.cuda.is_available()
    assert "batch_size is 1, must be 2 or more" in failed["failed"]
    assert broken["failed"] == "no kernel"
    said = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in said
    speeds = [f"{row['images_per_second']:,.0f}" for row in measured]
    assert f"| A | 4 | 32-true | {' | '.join(speeds)} |" in said
    assert failed["failed"] in said


@pytest.mark.parametrize("precision", gpu.PRECISIONS)
def test_the_bare_step_trains_at_each_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = SYSTEMS["A"].make()
    monkeypatch.setitem(SYSTEMS, "A", SYSTEMS["A"]._replace(size=16, make=lambda: net))
    step = make_step("A", precision, batch_size=2)
    before = [weight.clone() for weight in net.parameters()]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_the_most_important_is_measured_first() -> None:
    plan = list(gpu.plan())
    first = plan[: 2 * len(SYSTEMS)]
    assert {(one.setting.system, one.way) for one in first} == {(name, way) for name in SYSTEMS for way in gpu.WAYS[:2]}
    assert all(one.setting.batch_size == SYSTEMS[one.setting.system].batch_size for one in first)
    assert len(set(plan)) == len(plan)
    for one in plan:
        if one.what == "waiting":
            assert one._replace(what="speed") in plan[: plan.index(one)]  # which it needs


def test_work_that_overlaps_on_a_gpu_counts_once() -> None:
    spans = {"kernel": [(0, 10), (30, 5)], "gpu_memcpy": [(5, 10), (7, 1)], "cpu_op": [(0, 100)]}
    events = [{"cat": kind, "ts": start, "dur": length} for kind, all in spans.items() for start, length in all]
    assert gpu.busy_seconds([*events, {"ph": "M"}]) == pytest.approx(20e-6)


def test_without_a_gpu_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "DEVICE", torch.device("cpu"))
    assert benchmarks.main(["--gpu"]) == 2
    assert capsys.readouterr().err == (
        "error: --gpu measures a GPU, but no GPU works here. Without --gpu, the CPU is measured.\n"
    )


def test_figures_that_could_not_be_written_are_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["--out=."]) == 2
    assert "cannot write to '.': it is a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main(["--repetitions=0"])


def test_the_table_has_medians_and_their_ratios() -> None:
    speeds = {"bare": [100, 90, 300], "ours": [95, 80, 110]}
    speeds |= {"1 process": [50, 50, 50], "2 processes": [80, 80, 80]}
    in_notebooks = {"notebook": [20, 19, 21]}
    results = {
        f"{name} {way}": [{"images_per_second": value, "training_s": 20.0, "epoch_end_s": 3.0} for value in values]
        for name in NETWORKS
        for way, values in (speeds | (in_notebooks if name in IN_NOTEBOOKS else {})).items()
    }
    results |= {
        f"{name}, {what}": [{"images_per_second": value}]
        for name in STORES
        for what, value in (("decoded in threads", 100), ("decoded in processes", 200), ("store built", 150))
    }
    said = table({"processor": "a fast one"}, results)
    assert "processor: a fast one" in said
    assert "A bare                              images_per_second 100 (90 to 300)" in said
    for name in NETWORKS:
        notebook = "   ours / notebook 4.75" if name in IN_NOTEBOOKS else ""
        ratios = f"{name:7} ours / bare 0.95{notebook}   2 processes / 2 x 1 0.80"
        assert f"{ratios}   end of epoch / its steps 0.15" in said
    for name in STORES:
        assert f"{name}: store built / decoded in threads 1.50, in processes 0.75" in said


def test_a_classifier_of_kinds_tells_fruit_from_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for folder, number in {"Training": 16, "Test": 4}.items():
        for kind in ("Lime", "Plum"):
            path = tmp_path / folder / kind
            path.mkdir(parents=True)
            for index in range(number):
                Image.fromarray(draw_fruit(kind, rng)).save(path / f"{index}.jpg")
    vae, checkpoint = load_model(FRUIT, VAE)
    for weights in vae.decoder.parameters():
        torch.nn.init.normal_(weights)
    WholeCheckpointIO().save_checkpoint({**checkpoint, "state_dict": vae.state_dict()}, tmp_path / "noise.ckpt")
    monkeypatch.setattr(kinds, "BATCH", 8)
    assert kinds.main([f"--root={tmp_path}", f"--ckpt={FRUIT}", f"--ckpt={tmp_path / 'noise.ckpt'}"]) == 0
    learned, _, *rows = capsys.readouterr().out.splitlines()
    assert learned == "The classifier names the kind of 100.0% of 8 test images."
    half, *drawn = (float(row.split()[0]) for row in rows)
    reconstructions, samples, noisy_reconstructions, noisy_samples = drawn
    assert half < samples < noisy_samples
    assert reconstructions < noisy_reconstructions


def test_a_distance_is_that_of_means_and_covariances() -> None:
    features = torch.rand(50, kinds.NUM_FEATURES)
    assert kinds.frechet_distance(features, features) == pytest.approx(0, abs=1e-4)
    assert kinds.frechet_distance(features + 1, features) == pytest.approx(kinds.NUM_FEATURES, rel=1e-4)
    centered = features - features.mean(dim=0)
    assert kinds.frechet_distance(2 * centered, centered) == pytest.approx(float(features.var(dim=0).sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("root", "checkpoint", "said"),
    [
        ("nowhere", FRUIT, "there is no folder 'nowhere'"),
        ("fruits/Training/Lime", FRUIT, "Kinds to train on: 1; to test on: 1, in 1 images"),
        ("fruits", PALETTE, "is not the checkpoint of a VAE"),
    ],
)
def test_kinds_cannot_be_told_without_kinds_or_a_vae(
    root: str, checkpoint: Path, said: str, fruits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kinds.main([f"--root={root}", f"--ckpt={checkpoint}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_vaes_for_images_of_different_sizes_are_not_compared(
    vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kinds.main(["--root=anywhere", f"--ckpt={FRUIT}", f"--ckpt={last(vae_run)}"]) == 2
    sizes = "some VAEs draw images of 16 px, others of 100 px"
    assert capsys.readouterr().err == f"error: {sizes}: compare those of one size\n"
