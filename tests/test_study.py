import base64
import contextlib
import csv
import fcntl
import itertools
import logging
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

import numpy as np
import pytest
import torch
import yaml
from markupsafe import escape
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from callbacks.images import grid
from study.__main__ import main, make_parser
from study.claims import CLAIMS, Check, Claim, Figure, decide, judge
from study.measures import difference, held_out, load_data, load_model
from study.runs import Run, StudyError
from study.training import CONFIGS, plan, visible_devices
from tests.test_resuming import metrics
from tests.world import CONFIGS as ALL_CONFIGS
from tests.world import live_in, read_wandb, tiny, write_fruits, write_paintings
from train import main as train

SHALLOW = ALL_CONFIGS / "colorization" / "4_shallow_adam.yaml"
SVG = "{http://www.w3.org/2000/svg}"
SMALL = ["--size=16", "--data.init_args.batch_size=4", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]


def stop_once_it_has_learned(run: Run) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(StudyError):  # before there is a checkpoint
            if run.num_epochs >= 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        time.sleep(0.1)


def test_a_study_goes_on_where_it_was_stopped_and_names_what_fails(
    paintings: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tenth = Path("10_tenth.yaml")
    tenth.write_text(SHALLOW.read_text().replace("lr: 0.001", "lr: -1"))
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
    assert [int(row["epoch"]) for row in metrics(run.run_folder) if row["train/loss"]] == list(range(num_epochs))
    assert len([path for path in run.folder.iterdir() if path.is_dir()]) == 1  # one run, which went on

    times = run.times.read_text()
    assert main([*given, f"--epochs={num_epochs}", f"--configs={SHALLOW}"]) == 0
    assert run.times.read_text() == times  # nothing was trained

    assert main([*given, "--size=24", f"--configs={SHALLOW}"]) == 1
    assert "4_shallow_adam, seed 0: begun with size 16, not 24" in capfd.readouterr().err
    assert main([*given, "--config=vae.yaml"]) == 2
    assert "--config is --configs here" in capfd.readouterr().err
    other = Path("4_shallow_adam.yaml")
    other.write_text(SHALLOW.read_text().replace("lr: 0.001", "lr: 0.1"))
    assert main([*given, f"--epochs={num_epochs}", f"--configs={other}"]) == 1
    assert "begun with lr 0.001, not 0.1" in capfd.readouterr().err
    with run.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as another that trains it does
        assert main([*given, f"--epochs={num_epochs + 1}", f"--configs={SHALLOW}"]) == 1
    assert "in training already" in capfd.readouterr().err


def fit(config: Path, root: Path, seed: int = 0, *more: str) -> Run:
    run = Run(Path("study", config.stem, f"seed{seed}"))
    train(
        tiny("fit", root, f"--trainer.default_root_dir={run.folder}", f"--seed_everything={seed}", *more, config=config)
    )
    return run


@pytest.fixture(autouse=True, scope="module")
def _loud_again() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models 4 (two seeds), 7 and 8, a VAE, and what cannot be reported; and the report of it, written twice."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as world:
        live_in(folder, world)
        train_models(write_paintings(folder / "paintings"), write_fruits(folder / "fruits"))
        assert [main(["report", "--out=study"]) for _ in range(2)] == [0, 0]  # it is not put off by what the first left
    return folder / "study"


def train_models(paintings: Path, fruits: Path) -> None:
    train_folder, val_folder = (paintings / part / "painting" for part in ("training_set", "validation_set"))
    shutil.copy(train_folder / "0.jpg", val_folder / "copy.jpg")
    (train_folder / "text.jpg").write_text("no image")
    seven, eight = (SHALLOW.with_name(f"{name}.yaml") for name in ("7_resnet_adam", "8_shallow_adam_mae"))
    for config, root, seed in ((SHALLOW, paintings, 0), (SHALLOW, paintings, 1), (seven, paintings, 0)):
        fit(config, root, seed)
    done = fit(eight, paintings)
    fit(ALL_CONFIGS / "vae.yaml", fruits)
    fit(eight, fruits, 1)
    for seed in (2, 3, 4):
        shutil.copytree(done.folder, done.folder.with_name(f"seed{seed}"))
    damaged, unfinished, torn = (Run(done.folder.with_name(f"seed{seed}")) for seed in (2, 3, 4))
    damaged.checkpoint.write_bytes(damaged.checkpoint.read_bytes()[:1000])
    config = unfinished.run_folder / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 9"))
    (torn.run_folder / "config.yaml").write_text("model:\n  class_path: colori")
    film = Run(Path("study/7_resnet_adam/seed0")).run_folder / "media" / "colorizations.png"
    film.write_bytes(film.read_bytes()[:100])
    Path("study/6_deep_adam/seed0").mkdir(parents=True)
    Path("study/holiday/photos").mkdir(parents=True)


def test_a_report_holds_everything_and_names_what_it_leaves_out(study: Path) -> None:
    page, text = (study / "report.html").read_text(), (study / "report.md").read_text()
    left_out = {
        "1_shallow_rmsprop": "not trained",
        "6_deep_adam, seed 0": "no run in it has a last.ckpt",
        "8_shallow_adam_mae, seed 1": "trained on other images",
        "8_shallow_adam_mae, seed 2": "is damaged",
        "8_shallow_adam_mae, seed 3": "not finished: 2 of 9 epochs",
        "8_shallow_adam_mae, seed 4": "there is no class colori",
        "7_resnet_adam, seed 0, film strip": "cannot be read",
        "holiday": "not of this study",
    }
    for said in (page, text):
        titles = re.findall(r"<h2.*?>(.+?)</h2>|^## (.+)$", said, re.MULTILINE)
        assert ["".join(title) for title in titles] == [
            "Models",
            "What the report says",
            "Loss curves",
            "The same paintings, side by side",
            "Over the epochs",
            "Autoencoders",
            "Data",
            "Left out",
        ]
        for what, why in left_out.items():
            assert re.search(rf"{what}(</b>|\*\*): .*{why}", said), what
        for claim in CLAIMS:
            assert escape(claim.text) in said or claim.text in said
        items = re.findall(r"<li><b>|^- \*\*", said, re.MULTILINE)
        assert len(items) == len(left_out) + 4  # and models 2, 3, 5 and 9
    rows = {line.split("|")[1].strip(): line for line in text.split("## Data")[1].splitlines() if "|" in line}
    assert rows["left out: unreadable"] == "| left out: unreadable | 1 | 0 |"
    assert rows["left out: training has the same"] == "| left out: training has the same | 0 | 1 |"
    assert "no finished run, with the report" in next(line for line in text.splitlines() if line.startswith("| 7 |"))

    uris = re.findall(r'<img src="data:(.+?);base64,(.+?)"', page)
    assert page.count("<img") == len(uris)
    for kind, data in uris:
        check_picture(kind, base64.b64decode(data))
    names = re.findall(r"\]\((.+?)\)", text)
    assert len(names) == len(uris)
    for name in names:
        check_picture("image/svg+xml" if name.endswith("svg") else "image/jpeg", (study / name).read_bytes())
    assert re.findall(r"(?:src|href|url\()\W*https?:", page) == []  # nothing is fetched
    # lightness, three models, the original; curves of each and of all; two films; three terms and two films of the VAE
    assert len(uris) == 5 + 4 + 2 + 3 + 2


def check_picture(kind: str, content: bytes) -> None:
    if kind == "image/svg+xml":
        lines = [
            path
            for path in ET.fromstring(content).iter(f"{SVG}path")
            if path.get("clip-path") and "stroke" in path.get("style", "")
        ]
        assert len([line for line in lines if line.get("d", "").count("L") == 1]) >= 2  # two epochs
    else:
        Image.open(BytesIO(content)).load()


def test_its_figures_are_those_of_test(study: Path) -> None:
    with (study / "report.csv").open() as lines:
        rows = {(row["model"], row["seed"]): row for row in csv.DictReader(lines)}
    trained = {("4_shallow_adam", "0"), ("4_shallow_adam", "1"), ("7_resnet_adam", "0"), ("8_shallow_adam_mae", "0")}
    assert set(rows) == trained | {("vae", "0")}
    tested = {}
    for seed in (0, 1):
        checkpoint = Run(study / "4_shallow_adam" / f"seed{seed}").checkpoint
        done = train(tiny("test", study.parent / "paintings", f"--ckpt_path={checkpoint}", config=SHALLOW))
        tested[seed] = {name: value.item() for name, value in done.trainer.callback_metrics.items()}
        for name, value in tested[seed].items():
            assert float(rows["4_shallow_adam", str(seed)][name.removeprefix("test/")]) == pytest.approx(value)
    psnr = [tested[seed]["test/psnr"] for seed in (0, 1)]
    mean, deviation = sum(psnr) / 2, abs(psnr[0] - psnr[1]) / 2**0.5
    line = next(line for line in (study / "report.md").read_text().splitlines() if line.startswith("| 4_shallow_adam"))
    assert f"| {mean:.4g} ± {deviation:.2g} |" in line
    assert "ShallowColorizer, optimizer adam, lr 0.001, loss mse | 32,202 | 2 | 0, 1 |" in line
    gray = next(line for line in (study / "report.md").read_text().splitlines() if line.startswith("| gray"))
    assert f"| {tested[0]['test/gray_ciede2000']:.4g} |" in gray


def test_the_models_stand_side_by_side(study: Path) -> None:
    run = Run(study / "4_shallow_adam" / "seed0")
    model, images = load_model(run), held_out(load_data(run), 6)
    lightness, chroma = model.split(images)
    gray = model.join(lightness, torch.zeros_like(chroma))
    for name, expected in {"lightness": gray, "4_shallow_adam": model.colorize(images), "original": images}.items():
        with Image.open(study / "report" / f"row_{name}.jpg") as row:  # of all six held-out paintings
            assert np.abs(np.asarray(row).astype(int) - np.asarray(grid(expected, 6))).mean() < 3


def test_the_difference_of_two_models_is_that_of_their_pictures(study: Path) -> None:
    runs = [Run(study / name / "seed0") for name in ("4_shallow_adam", "8_shallow_adam_mae")]
    first, second = map(load_model, runs)
    data = load_data(runs[0])
    images = held_out(data, 6)
    labs = [rgb2lab(model.colorize(images).permute(0, 2, 3, 1).cpu().numpy()) for model in (first, second)]
    assert difference(first, second, data) == pytest.approx(deltaE_ciede2000(*labs).mean(), abs=1e-3)


def test_weights_and_biases_has_the_report(study: Path) -> None:
    records = read_wandb(study)
    logged = [page.read_text() for folder in records["folder"] for page in folder["path"].glob("media/html/*.html")]
    assert (study / "report.html").read_text() in logged
    assert {record["name"] for record in records["artifact"]} == {"study-report"}


def test_a_study_that_is_not_there_or_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out=nowhere"]) == 2
    assert "there is no study 'nowhere'" in capsys.readouterr().err
    (tmp_path / "photos" / "2020").mkdir(parents=True)
    assert main(["report", f"--out={tmp_path}"]) == 2
    assert "photos: not of this study" in capsys.readouterr().err


FIGURES = {  # 5 % of deviation in the mse of each, and 0.05 * sqrt(1 / 2 + 1 / 2) * 2 = 10 % of margin between two
    "1": {"mse": Figure(1.0, 0.05, 2), "psnr": Figure(20.0)},
    "2": {"mse": Figure(1.3, 0.065, 2), "psnr": Figure(20.5)},
    "3": {"mse": Figure(1.08, 0.054, 2), "psnr": Figure(22.0)},
    "4": {"mse": Figure(1.0)},  # one seed
    "5": {"mse": Figure(1.0, 0.05, 100)},
    "6": {"mse": Figure(1.02, 0.051, 100)},
}


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
        (Check("1", "mse", "below", "9"), "not decidable"),  # which there is not
        (Check("1", "psnr", "below", "2"), "not decidable"),  # 2 % of deviation: 5.7 % of margin
        (Check("1", "psnr", "below", "3"), "confirmed"),
    ],
)
def test_a_check_is_decided_where_chance_cannot_explain_it(check: Check, verdict: str) -> None:
    decided, said = decide(check, FIGURES, dict.fromkeys("123456", 7))
    assert decided.value == verdict
    assert check.metric in said


@pytest.mark.parametrize(
    ("check", "what"),
    [
        (Check("1", "mse", "below", "9"), "model 9"),
        (Check("9", "mse", "below", "8"), "model 9 and model 8"),
        (Check("1", "difference from 4", "below", 2.0), "one of the two"),
    ],
)
def test_what_is_not_there_is_said(check: Check, what: str) -> None:
    assert decide(check, FIGURES, {"1": 7})[1].endswith(f"settings, of {what}")


def test_other_budgets_are_said() -> None:
    assert "after 7 against 9 epochs" in decide(Check("1", "mse", "below", "2"), FIGURES, {"1": 7, "2": 9})[1]


CHECKS = {
    "confirmed": Check("1", "mse", "below", "2"),
    "refuted": Check("2", "mse", "below", "1"),
    "open": Check("1", "mse", "below", "3"),
}


@pytest.mark.parametrize(
    ("of", "verdict"),
    [
        (["confirmed"], "confirmed"),
        (["confirmed", "open"], "not decidable"),
        (["confirmed", "open", "refuted"], "refuted"),
    ],
)
def test_a_claim_holds_if_all_of_it_does(of: list[str], verdict: str) -> None:
    claim = Claim("1", "", tuple(CHECKS[name] for name in of))
    judged = judge(claim, FIGURES, dict.fromkeys("123456", 7))
    assert (judged.verdict.value, len(judged.evidence)) == (verdict, len(of))


def test_every_model_of_which_the_report_says_something_is_judged() -> None:
    assert {claim.model for claim in CLAIMS} == set("2345789")
    named = {(check.model, check.other) for claim in CLAIMS for check in claim.checks}
    assert {other for _, other in named if isinstance(other, str)} <= set("123456789")


def test_the_sweep_trains_all_nine_with_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ALL_CONFIGS.parent)
    sweep = yaml.safe_load((ALL_CONFIGS / "sweep.yaml").read_text())
    assert sweep["command"][:5] == ["${env}", "python", "-m", "study", "run"]
    grid = sweep["parameters"]
    tasks = []
    for config, seed in itertools.product(grid["configs"]["values"], grid["seeds"]["values"]):
        given = [*sweep["command"][4:-1], f"--configs={config}", f"--seeds={seed}"]  # as the agent writes them
        tasks += plan(*make_parser().parse_known_args(given))
    assert all(task.num_epochs == 20 for task in tasks)
    folders = {task.run.folder for task in tasks}
    assert folders == {Path("runs/study", path.stem, f"seed{seed}") for path in CONFIGS for seed in (0, 1)}


def test_from_scratch_a_network_has_no_weights() -> None:
    for scratch, expected in ([], set()), (["--scratch"], {"7_resnet_adam"}):
        tasks = plan(*make_parser().parse_known_args(["run", *scratch]))
        assert {task.run.model for task in tasks if "--model.init_args.weights=null" in task.arguments} == expected
        assert len(tasks) == 9


def test_each_gpu_is_given_to_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, expected in {0: [{}], 2: [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]}.items():
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert visible_devices() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_devices() == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
