import base64
import csv
import fcntl
import itertools
import logging
import math
import os
import re
import shutil
import signal
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from markupsafe import escape
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from torchvision.models import alexnet

from colorization import Colorizer, ShallowColorizer
from datamodules import PaintingsDataModule
from images.drawing import grid
from resuming.checkpoints import data_of, load_model
from resuming.loggers import METRICS_FILE, read_metrics
from study import measures, training
from study.__main__ import main, make_parser
from study.claims import CLAIMS, Check, Claim, Figure, assess, decide
from study.measures import difference, held_out, load_lpips, perceptual_differences
from study.page import HINTED
from study.runs import Run, read_history
from study.training import CONFIGS, plan, visible_devices
from tests.world import CONFIGS as ALL_CONFIGS
from tests.world import live_in, read_wandb, tiny, write_fruits, write_paintings
from train import main as train

SHALLOW = ALL_CONFIGS / "colorization" / "4_shallow_adam.yaml"
SVG = "{http://www.w3.org/2000/svg}"
SMALL = ["--size=16", "--data.init_args.batch_size=4", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]


def stop_once_it_has_learned(run: Run) -> None:
    deadline = time.monotonic() + 180
    try:
        while run.num_epochs < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_study_goes_on_where_it_was_stopped_and_names_what_fails(
    paintings: Path, fruits: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_TAGS": "mine,too"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training, "POLL", 0.1)
    monkeypatch.setattr(training, "visible_devices", lambda: [{}, {}])  # two at a time
    tenth, other = Path("10_tenth.yaml"), Path("4_shallow_adam.yaml")
    for path, lr in ((tenth, "-1"), (other, "0.1")):
        path.write_text(SHALLOW.read_text().replace("lr: 0.001", f"lr: {lr}"))
    Path("first, small").mkdir()
    Path("study").symlink_to("first, small")
    given = ["run", f"--root={paintings}", "--out=study", *SMALL]
    run = Run(Path("study", "4_shallow_adam", "seed0").absolute())
    threading.Thread(target=stop_once_it_has_learned, args=(run,), daemon=True).start()
    assert main([*given, f"--configs={SHALLOW}", "--epochs=1000"]) == 143
    stopped_after = run.num_epochs
    assert 1 <= stopped_after < 1000

    num_epochs = stopped_after + 2
    capfd.readouterr()
    assert main([*given, f"--epochs={num_epochs}", "--configs", str(tenth), str(SHALLOW)]) == 1
    said, errors = capfd.readouterr()
    assert "1 of 2 models are trained in 'study'" in said
    assert "10_tenth, seed 0: not finished, exit status 2. error: model.init_args.lr is -1.0" in errors
    rows = read_metrics(run.run_folder / METRICS_FILE)
    assert [int(row["epoch"]) for row in rows if "train/loss" in row] == list(range(num_epochs))
    assert len([path for path in run.folder.iterdir() if path.is_dir()]) == 1  # one run, which resumed
    for described in (record for record in read_wandb(run.run_folder)["run"] if "tags" in record):
        assert described["tags"] == ["first  small", "mine", "too", "colorization"]
        assert described["display_name"] == "4_shallow_adam, seed 0"

    times = run.times.read_text()
    text, deep, same = SHALLOW.read_text(), Path("deep", SHALLOW.name), Path("same", SHALLOW.name)
    deep.parent.mkdir()
    deep.write_text(text.replace("ShallowColorizer", "DeepColorizer"))
    same.parent.mkdir()
    same.write_text(text.replace("lr: 0.001", "lr: 1e-3").replace("colorization.S", "colorization.colorizer.S"))
    Path("link").symlink_to(paintings)
    for status, said, *more in (
        (0, "", f"--epochs={num_epochs}", f"--configs={SHALLOW}"),
        (0, "", f"--epochs={num_epochs}", f"--configs={same}", "--root=paintings/"),
        (0, "", f"--epochs={num_epochs}", f"--configs={same}", "--root=./link"),
        (1, f"begun with root {paintings}, not {fruits}", f"--root={fruits}", f"--configs={SHALLOW}"),
        (1, "begun with model ShallowColorizer, not DeepColorizer", f"--epochs={num_epochs}", f"--configs={deep}"),
        (1, "begun with data PaintingsDataModule, not Fruits", f"--configs={SHALLOW}", "--data=FruitsDataModule"),
        (0, "", f"--epochs={num_epochs}", f"--configs={SHALLOW}", "--data.num_workers=1"),
        (1, "begun with batch_size 4, not 8", f"--configs={SHALLOW}", "--data.batch_size=8"),
        (1, "begun with flip True, not False", f"--configs={SHALLOW}", "--data.flip=false"),
        (1, "begun with lr 0.001, not 0.002", f"--configs={SHALLOW}", "--model.lr=2e-3"),
        (2, "--data.size cannot be given here: use --size", f"--configs={SHALLOW}", "--data.size=24"),
        (1, "4_shallow_adam, seed 0: begun with size 16, not 24", "--size=24", f"--configs={SHALLOW}"),
        (1, "begun with lr 0.001, not 0.1", f"--epochs={num_epochs}", f"--configs={other}"),
        (2, "--config cannot be given here: use --configs", "--config=vae.yaml"),
    ):
        assert main([*given, *more]) == status
        assert said in capfd.readouterr().err
    with run.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as a process that trains it does
        assert main([*given, f"--epochs={num_epochs + 1}", f"--configs={SHALLOW}"]) == 1
    assert "already in training" in capfd.readouterr().err
    assert run.times.read_text() == times  # nothing was trained


class LogOddly(Callback):
    """Log what a study page cannot draw or compute with."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("epoch", float(trainer.current_epoch))  # where others log a whole number
        pl_module.log("train/infinite", math.inf)
        pl_module.log("any, thing", -1.0)
        text: dict[str, Any] = {"train/phase": "warm\nup", "epoch": 0}
        for logger in trainer.loggers:
            logger.log_metrics(text, step=trainer.global_step)


@pytest.fixture(autouse=True, scope="module")
def _loud_again() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model 4 (two seeds), models 8 and 10, a VAE, and folders that cannot be used; and their study page."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as world:
        live_in(folder, world)
        Path("étude").mkdir()
        Path("study").symlink_to("étude")
        train_models(write_paintings(folder / "paintings"), write_fruits(folder / "fruits"))
        Path("study/wandb/run-1/files").mkdir(parents=True)  # what an earlier page left
        Path("study/wandb/run-1/files/config.yaml").write_text("_wandb: {}")
        world.setenv("WANDB_MODE", "offline")
        wandb.teardown()  # forgets the mode that it saw first
        assert main(["page", "--out=study"]) == 0
        wandb.teardown()
    return folder / "study"


def train_models(paintings: Path, fruits: Path) -> None:
    train_folder, val_folder = (paintings / part / "painting" for part in ("training_set", "validation_set"))
    shutil.copy(train_folder / "0.jpg", val_folder / "copy.jpg")
    (train_folder / "text.jpg").write_text("no image")
    eight, vae = SHALLOW.with_name("8_shallow_adam_mae.yaml"), ALL_CONFIGS / "vae.yaml"
    for config, root, seed in (
        (SHALLOW, paintings, 0),
        (SHALLOW, paintings.relative_to(Path.cwd()), 1),
        (eight, paintings, 0),
        (SHALLOW.with_name("10_palette.yaml"), paintings, 0),
        (vae, fruits, 0),
    ):
        where = f"--trainer.default_root_dir=study/{config.stem}/seed{seed}"
        more = [f"--trainer.callbacks+={name}" for name in ("LearningRateMonitor", f"{__name__}.LogOddly")]
        train(tiny("fit", root, where, f"--seed_everything={seed}", *more, config=config))
    Path("study/8_shallow_adam_mae/seed0/seconds.txt").write_text("90.0\n30.0\n")  # trained in two sessions

    def copy(name: str, old: str = "", new: str = "") -> Run:
        run = Run(shutil.copytree("study/8_shallow_adam_mae/seed0", Path("study", name)))
        config = run.run_folder / "config.yaml"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new) if old else config.read_text())
        return run

    copy("8_shallow_adam_mae/seed1", str(paintings), str(fruits))
    damaged = copy("8_shallow_adam_mae/seed2").checkpoint
    damaged.write_bytes(damaged.read_bytes()[:1000])
    copy("8_shallow_adam_mae/seed3", "max_epochs: 2", "max_epochs: 9")
    spelled = Run(Path("study/8_shallow_adam_mae/seed0")).run_folder / "config.yaml"
    text = spelled.read_text().replace("colorization.S", "colorization.colorizer.S")
    spelled.write_text(text.replace("datamodules.P", "datamodules.paintings.P"))
    torn = copy("8_shallow_adam_mae/seed4").run_folder / "config.yaml"
    torn.write_text("model:\n  class_path: colori")
    copy("8_shallow_adam_mae/seed5", "lr: 0.001", "lr: 0.002")
    film = copy("9_deep_adam_mae/seed0").run_folder / "media" / "colorizations.png"  # not with the report's settings
    film.write_bytes(film.read_bytes()[:100])
    Path("study/6_deep_adam/seed0").mkdir(parents=True)
    for ignored in ("holiday/photos", "vae/seed0.old"):
        Path("study", ignored).mkdir(parents=True)
    earlier = Path(shutil.copytree(Run(Path("study/vae/seed0")).run_folder, "study/vae/seed0/20990101-000000-0000"))
    os.utime(earlier / "checkpoints" / "last.ckpt", (0, 0))


def table_rows(page: str) -> dict[str, list[str]]:
    """Return the cells of every table row by their first cell, without tags."""
    rows = [
        re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    texts = [[" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in row] for row in rows]
    return {first: cells for first, *cells in texts}


def pictures(page: str) -> dict[str, tuple[str, bytes]]:
    """Return the kind and content of every picture by its caption."""
    found = re.findall(r'<img src="data:(.+?);base64,(.+?)" alt="(.+?)">', page)
    assert len(found) == page.count("<img")
    return {caption: (kind, base64.b64decode(content)) for kind, content, caption in found}


def test_a_page_holds_everything_and_names_what_it_leaves_out(study: Path) -> None:
    page = (study / "study.html").read_text()
    titles = "Models, What the report says, Loss curves, Side by side, Over the epochs, Autoencoders, Data, Left out"
    assert ", ".join(re.findall(r"<h2.*?>(.+?)</h2>", page)) == titles
    left_out = {
        "6_deep_adam, seed 0": "no run in it has a last.ckpt",
        "8_shallow_adam_mae, seed 1": "trained on different images",
        "8_shallow_adam_mae, seed 2": "is not a whole checkpoint",
        "8_shallow_adam_mae, seed 3": "not finished: 2 of 9 epochs",
        "8_shallow_adam_mae, seed 4": "is not a whole config",
        "8_shallow_adam_mae, seed 5": "trained differently from 8_shallow_adam_mae, seed 0",
        "9_deep_adam_mae, seed 0, film strip": "cannot be read",
        "holiday": "not part of this study",
        "vae, seed0.old": "not called seed0, seed1",
        "vae, seed 0, 20990101-000000-0000": "only the newest run counts",
        "lpips": "needs images of 31 px",
    } | {path.stem: "not trained" for path in CONFIGS if path.stem[:2] in ("1_", "2_", "3_", "5_", "7_")}
    found = dict(re.findall(r"<li><b>(.+?)</b>: (.+)</li>", page))
    assert found.keys() == left_out.keys()
    assert [what for what, why in left_out.items() if why not in found[what]] == []
    assert all(escape(claim.text) in page for claim in CLAIMS)
    assert "no finished run with the report&#39;s settings for model 9 and model 6" in page
    assert "settings for model 8" not in page
    rows = table_rows(page)
    assert rows["left out: unreadable"] == ["1", "0"]
    assert rows["left out: also in training"] == ["0", "1"]
    assert re.findall(r"(?:src|href|url\()\W*https?:", page) == []  # nothing is fetched
    shown = pictures(page)
    # lightness, four models, the original; curves of each and of all; three films; three terms and two films of the VAE
    assert len(shown) == 6 + 5 + 3 + 3 + 2
    for kind, content in shown.values():
        if kind == "image/jpeg":
            Image.open(BytesIO(content)).load()
        else:
            paths = [path.attrib for path in ET.fromstring(content).iter(f"{SVG}path") if path.get("clip-path")]
            drawn = [path["d"].count("L") for path in paths if "stroke" in path.get("style", "")]
            assert drawn.count(1) >= 2  # lines through two epochs


def test_list_says_what_each_run_reached_the_newest_first(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, folder in enumerate(("10_palette/seed0", "4_shallow_adam/seed1", "vae/seed0")):
        run = tmp_path / folder
        run.mkdir(parents=True)
        for name in ("config.yaml", "metrics.csv"):
            shutil.copy(Run(study / folder).run_folder / name, run)
        os.utime(run / "config.yaml", (0, 1e9 - age))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.yaml").write_text("model:")
    shutil.copytree(study / "wandb", tmp_path / "wandb")
    assert main(["list", str(tmp_path)]) == 0
    said = capsys.readouterr()
    (left_out,) = said.err.splitlines()
    assert left_out.startswith("torn is left out: ")
    heading, *lines = said.out.splitlines()
    for line, folder in zip(lines, ("10_palette/seed0", "4_shallow_adam/seed1", "vae/seed0"), strict=True):
        assert f"  {folder}  " in line
        history = read_history(tmp_path / folder / "metrics.csv")
        for name, metric, best in (("val/loss", "val/loss", min), ("PSNR", "val/psnr", max)):
            if metric in history:
                figure = line[heading.index(name) :].split("  ")[0]
                assert figure == f"{best(value for _, value in history[metric]):.4g}"


def test_its_figures_are_those_of_test(study: Path) -> None:
    with (study / "study.csv").open() as lines:
        rows = {(row["model"], row["seed"]): row for row in csv.DictReader(lines)}
    four = "4_shallow_adam"
    others = {(name, "0") for name in ("8_shallow_adam_mae", "9_deep_adam_mae", "10_palette", "vae")}
    assert set(rows) == {(four, "0"), (four, "1"), *others}
    tested = []
    for seed in "01":
        checkpoint = Run(study / four / f"seed{seed}").checkpoint
        done = train(tiny("test", study.parent / "paintings", f"--ckpt_path={checkpoint}", config=SHALLOW))
        metrics = {name.removeprefix("test/"): value.item() for name, value in done.trainer.callback_metrics.items()}
        assert {name: float(rows[four, seed][name]) for name in metrics} == pytest.approx(metrics)
        tested.append(metrics)
    first, second = (metrics["psnr"] for metrics in tested)
    shown = table_rows((study / "study.html").read_text())
    (row,) = (cells for name, cells in shown.items() if name.startswith(four))
    assert f"{four} ShallowColorizer, optimizer adam, lr 0.001, loss mse" in shown
    assert row[2] == f"{(first + second) / 2:.4g} ± {abs(first - second) / 2**0.5:.2g}"
    assert row[-4:] == ["32,202", "2", "0, 1", "unknown"]
    assert next(cells for name, cells in shown.items() if name.startswith("8_shallow"))[-1] == "2.0"  # minutes
    assert shown["gray baseline"][4] == f"{tested[0]['gray_ciede2000']:.4g}"
    ours, truths = (
        sum(metrics["colorfulness"] - factor * metrics["colorfulness_difference"] for metrics in tested)
        for factor in (0, 1)
    )
    assert float(row[6].partition(" ")[0]) == pytest.approx(ours / truths, rel=0.01)
    assert float(shown["gray baseline"][6]) == pytest.approx(0, abs=1e-3)
    hinted = [f"{float(rows['10_palette', '0'][f'{prefix}ciede2000']):.4g}" for prefix in HINTED]
    assert shown["10_palette"] == hinted


def test_the_models_stand_side_by_side_and_differ_as_their_pictures_do(study: Path) -> None:
    (first, checkpoint), (second, _) = (
        load_model(Run(study / name / "seed0").checkpoint, Colorizer)
        for name in ("4_shallow_adam", "8_shallow_adam_mae")
    )
    data = data_of(checkpoint)
    images = held_out(data, 6)
    lightness, chroma = first.split(images)
    gray = first.join(lightness, torch.zeros_like(chroma))
    shown = pictures((study / "study.html").read_text())
    for name, expected in {"lightness": gray, "4_shallow_adam": first.colorize(images), "original": images}.items():
        with Image.open(BytesIO(shown[name][1])) as row:  # all six held-out paintings
            assert np.abs(np.asarray(row).astype(int) - np.asarray(grid(expected, 6))).mean() < 3
    labs = [rgb2lab(model.colorize(images).permute(0, 2, 3, 1).cpu().numpy()) for model in (first, second)]
    assert difference(first, second, data) == pytest.approx(deltaE_ciede2000(*labs).mean(), abs=1e-3)


def test_lpips_is_measured_if_its_weights_are_there(
    no_network: Path, paintings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out: dict[str, str] = {}
    assert load_lpips(left_out, 32) is None
    path = no_network / "alexnet-owt-7be5be79.pth"
    assert "could not be downloaded or read" in left_out["lpips"]
    assert f"at {path}" in left_out["lpips"]
    assert left_out["lpips"] in capsys.readouterr().err.replace("\n", "")
    torch.save(alexnet().state_dict(), path)
    lpips = load_lpips({}, 32)
    assert lpips is not None
    model, data = ShallowColorizer("adam", 0.001, "mse"), PaintingsDataModule(str(paintings), size=32, batch_size=4)
    data.setup("test")
    scores = perceptual_differences(model.to(lpips.device), data, lpips)
    images = held_out(data, 6).to(lpips.device)
    lightness, chroma = model.split(images)
    for name, colored in {"": model.colorize(images), "gray_": model.join(lightness, 0 * chroma)}.items():
        assert scores[f"{name}lpips"] == pytest.approx(lpips(colored, images).item(), rel=1e-3)
    assert scores["gray_lpips"] > 0


def test_weights_and_biases_has_the_page(study: Path) -> None:
    records = read_wandb(study)
    logged = [page.read_text() for folder in records["folder"] for page in folder["path"].glob("media/html/*.html")]
    assert (study / "study.html").read_text() in logged
    assert {record["name"] for record in records["artifact"]} == {"_tude-page"}


def test_a_page_that_weights_and_biases_refuses_is_written(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.errors.CommError("permission denied")

    monkeypatch.setattr(wandb, "init", refuse)
    shutil.copytree(study / "4_shallow_adam" / "seed0", "small/4_shallow_adam/seed0")
    assert main(["page", "--out=small"]) == 2
    expected = "error: 'small/study.html' is written, but W&B does not take it: permission denied"
    assert expected in capsys.readouterr().err
    assert "4_shallow_adam" in Path("small/study.html").read_text()


def test_without_memory_a_page_says_what_to_do(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*args: Any) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(measures, "test", fill)
    assert main(["page", f"--out={study}"]) == 2
    assert "error: out of memory. Set CUDA_VISIBLE_DEVICES= to use the CPU." in capsys.readouterr().err


def test_a_study_that_is_not_there_or_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["page", "--out=nowhere"]) == 2
    assert "there is no study 'nowhere'" in capsys.readouterr().err
    (tmp_path / "photos" / "2020").mkdir(parents=True)
    assert main(["page", f"--out={tmp_path}"]) == 2
    assert "photos: not part of this study" in capsys.readouterr().err


def test_where_no_run_is_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.yaml").write_text("model:")
    assert main(["list", str(tmp_path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("torn is left out: ")
    assert second == f"error: no run in '{tmp_path}' has trained for an epoch; name the folder of your runs"


def test_a_study_that_cannot_be_written_is_refused_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["run", f"--out={tmp_path / 'file' / 'study'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot write to '{tmp_path}/file/study': Not a directory. Choose a different --out."


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "4_shallow_adam" / "seed0").mkdir(parents=True)
    (tmp_path / "study.csv").mkdir()
    assert main(["page", f"--out={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # no progress
    assert f"cannot write to '{tmp_path / 'study.csv'}': it is a folder" in line


FIGURES = {  # each mse deviates by 5 %, so models with two seeds have a margin of 0.05 * sqrt(1 / 2 + 1 / 2) * 2 = 10 %
    "1": {"mse": Figure(1.0, 0.05, 2), "psnr": Figure(20.0)},
    "2": {"mse": Figure(1.3, 0.065, 2), "psnr": Figure(20.5)},
    "3": {"mse": Figure(1.08, 0.054, 2), "psnr": Figure(22.0)},
    "4": {"mse": Figure(1.0)},  # one seed
    "5": {"mse": Figure(1.0, 0.05, 100)},
    "6": {"mse": Figure(1.02, 0.051, 100)},
}
EPOCHS = dict.fromkeys("123456", 7)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (Check("1", "mse", "below", "2"), "confirmed"),
        (Check("2", "mse", "below", "1"), "refuted"),
        (Check("2", "mse", "above", "1"), "confirmed"),
        (Check("1", "mse", "below", "3"), "not decidable"),  # within the margin
        (Check("4", "mse", "below", "3"), "not decidable"),
        (Check("5", "mse", "about", "6"), "confirmed"),
        (Check("2", "mse", "about", "5"), "refuted"),
        (Check("1", "mse", "about", "3"), "not decidable"),
        (Check("1", "mse", "below", 1.08), "confirmed"),  # 8 % apart, beyond a margin of 7 %
        (Check("1", "mse", "below", 0.5), "refuted"),
        (Check("1", "mse", "below", "9"), "not decidable"),  # there is no model 9
        (Check("1", "psnr", "below", "2"), "not decidable"),  # a deviation of 2 % makes a margin of 5.7 %
        (Check("1", "psnr", "below", "3"), "confirmed"),
    ],
)
def test_a_check_is_decided_where_chance_cannot_explain_it(check: Check, verdict: str) -> None:
    decided, said = decide(check, FIGURES, EPOCHS)
    assert decided.value == verdict
    assert check.metric in said


def test_missing_models_and_other_budgets_are_said() -> None:
    for check, what in {
        Check("1", "mse", "below", "9"): "model 9",
        Check("9", "mse", "below", "8"): "model 9 and model 8",
        Check("1", "difference from 4", "below", 2.0): "one of the two",
    }.items():
        assert decide(check, FIGURES, EPOCHS)[1].endswith(f"settings for {what}")
    assert "after 7 against 9 epochs" in decide(Check("1", "mse", "below", "2"), FIGURES, {**EPOCHS, "2": 9})[1]


def test_a_claim_holds_if_all_of_it_does() -> None:
    confirmed, undecided, refuted = (
        Check(*pair) for pair in (("1", "mse", "below", "2"), ("1", "mse", "below", "3"), ("2", "mse", "below", "1"))
    )
    for checks, verdict in {
        (confirmed,): "confirmed",
        (confirmed, undecided): "not decidable",
        (confirmed, undecided, refuted): "refuted",
    }.items():
        assessed = assess(Claim("1", "", checks), FIGURES, EPOCHS)
        assert (assessed.verdict.value, len(assessed.evidence)) == (verdict, len(checks))


def test_every_model_of_which_the_report_says_something_is_assessed() -> None:
    assert {claim.model for claim in CLAIMS} == set("2345789")
    named = {(check.model, check.other) for claim in CLAIMS for check in claim.checks}
    assert {other for _, other in named if isinstance(other, str)} <= set("123456789")


def planned(*args: str) -> list[training.Task]:
    return plan(*make_parser().parse_known_args(["run", *args]))


def test_the_models_are_in_the_order_of_their_numbers() -> None:
    assert [path.stem.partition("_")[0] for path in CONFIGS] == [str(number) for number in range(1, 11)]


def test_all_models_of_a_kind_have_images_of_one_size() -> None:
    sizes = [task.settings["size"] for task in planned()]
    assert sizes == [256] * 10
    assert [task.settings["size"] for task in planned("--size=64")] == [64] * 10
    assert planned("--configs", str(CONFIGS[0]), str(ALL_CONFIGS / "vae.yaml"))[1].settings["size"] == 100


def test_the_sweep_trains_all_ten_with_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ALL_CONFIGS.parent)
    sweep = yaml.safe_load((ALL_CONFIGS / "sweep.yaml").read_text())
    assert sweep["command"][:5] == ["${env}", "python", "-m", "study", "run"]
    values = [parameter["values"] for parameter in (sweep["parameters"]["configs"], sweep["parameters"]["seeds"])]
    tasks = []
    for config, seed in itertools.product(*values):
        tasks += planned(*sweep["command"][5:-1], f"--configs={config}", f"--seeds={seed}")  # as the agent writes them
    assert all(task.num_epochs == 20 for task in tasks)
    folders = {task.run.folder for task in tasks}
    assert folders == {Path("runs/study", path.stem, f"seed{seed}") for path in CONFIGS for seed in (0, 1)}


def test_from_scratch_a_network_has_no_weights() -> None:
    for scratch, expected in ([], set()), (["--scratch"], {"7_resnet_adam", "10_palette"}):
        tasks = planned(*scratch)
        assert {task.run.model for task in tasks if "--model.init_args.weights=null" in task.arguments} == expected
        assert len(tasks) == 10
        assert tasks[-1].settings["backbone"] == (None if scratch else "tf_efficientnet_lite0")
        assert tasks[-1].settings["freeze_encoder"] == (not scratch)


def test_a_config_needs_neither_root_nor_size() -> None:
    config = yaml.safe_load(SHALLOW.read_text())
    config["data"] = {"class_path": "datamodules.PaintingsDataModule"}
    Path("short.yaml").write_text(yaml.safe_dump(config))
    for given, size in ([], 128), (["--size=16"], 16):
        for task in planned("--configs", "short.yaml", str(SHALLOW), *given):
            assert {"root": None, "size": size}.items() <= task.settings.items()


def test_a_mistake_in_a_config_is_named_before_anything_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text(SHALLOW.read_text().replace("lr: 0.001", "lr: fast"))
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--configs", str(SHALLOW), "wrong.yaml"])
    assert capsys.readouterr().err == "error: model.init_args.lr: expected float, got fast\n  in wrong.yaml, line 4\n"


def test_each_gpu_is_given_to_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(training, "start_gpu", torch.cuda.is_available)  # none can be started here
    for count, given, expected in (
        (0, None, []),
        (2, None, ["0", "1"]),
        (8, "5,7", ["5", "7"]),
        (6, "5,7", ["5"]),  # there is no 7
        (8, "MIG-1a2b,MIG-3c4d", ["MIG-1a2b", "MIG-3c4d"]),
    ):
        monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda count=count: count)
        monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 1)  # CUDA's own: MIG shows one to a process
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_devices() == ([{"CUDA_VISIBLE_DEVICES": name} for name in expected] or [{}])
