import multiprocessing
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from images.drawing import COLUMNS, MAP_SIZE, mosaic
from resuming.checkpoints import load_model
from tests.test_images import cells
from tests.world import CONFIGS, last, tiny
from train import PigmentCLI
from train import main as train
from vae import VAE, ConvVAE, ResidualVAE
from vae.__main__ import main
from vae.chart import THUMBNAIL, Chart, Found, find_places, find_typical
from vae.play import REACH, Fruit
from vae.weights import FRUIT
from vae.weights.__main__ import LARGEST
from vae.weights.__main__ import main as convert


@pytest.fixture
def files(vae_run: PigmentCLI) -> list[Path]:
    return [vae_run.datamodule.folder / "Test" / name for name in ("Lime/0_100.jpg", "Orange/1_100.jpg")]


def draw(command: str, checkpoint: Path, *more: str) -> np.ndarray:
    """The grid that a command draws: (rows, columns, 16, 16, 3)."""
    assert main([command, *more, f"--ckpt={checkpoint}", "--out=new/grid.png"]) == 0
    return cells(np.asarray(Image.open("new/grid.png")))


def as_cells(images: Tensor) -> np.ndarray:
    return images.mul(255).byte().permute(0, 2, 3, 1).numpy()


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_sample_draws_what_the_model_samples(vae_run: PigmentCLI) -> None:
    for more, arguments in (
        (["--number=20"], (20, 0, "mixture")),
        (["--number=20", "--seed=3", "--sampler=prior"], (20, 3, "prior")),
    ):
        found = draw("sample", last(vae_run), *more)
        assert found.shape[:2] == (3, COLUMNS)
        assert_alike(found.reshape(24, 16, 16, 3)[:20], as_cells(vae_run.model.sample(*arguments)))


def test_home_is_expanded_and_odd_names_are_escaped(
    vae_run: PigmentCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("last.ckpt").symlink_to(last(vae_run))
    assert main(["sample", "--ckpt=~/last.ckpt", "--out=~/a\nb\udcff.png", "--number=1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a\\nb\\udcff.png\n"
    assert (tmp_path / "a\nb\udcff.png").exists()


def test_many_samples_are_decoded_in_batches(vae_run: PigmentCLI, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, decode = [], ConvVAE.decode

    def watched(vae: ConvVAE, latents: Tensor) -> Tensor:
        sizes.append(len(latents))
        return decode(vae, latents)

    monkeypatch.setattr(ConvVAE, "decode", watched)
    found = draw("sample", last(vae_run), "--number=600")
    assert max(sizes) < 300
    assert_alike(found.reshape(600, 16, 16, 3), as_cells(vae_run.model.sample(600, 0, "mixture")))


def sample_within(num_bytes: int, checkpoint: Path) -> None:
    """Sample ten million images in a process that may take only so much more memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes,) * 2)
    sys.exit(main(["sample", f"--ckpt={checkpoint}", "--out=grid.png", f"--number={10**7}"]))


def test_more_samples_than_fit_into_memory_are_refused(vae_run: PigmentCLI, capfd: pytest.CaptureFixture[str]) -> None:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=sample_within, args=(2**29, last(vae_run)))  # their grid takes 16 GB
    process.start()
    process.join()
    assert process.exitcode == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: out of memory. Ask for fewer images")


def test_reconstruct_draws_files_and_below_them_what_becomes_of_them(vae_run: PigmentCLI, files: list[Path]) -> None:
    originals = torch.cat([read(file) for file in files])
    found = draw("reconstruct", last(vae_run), *map(str, files))
    assert_alike(found, np.stack([as_cells(originals), as_cells(vae_run.model.reconstruct(originals))]))
    found = draw("reconstruct", last(vae_run), *map(str, files * 5))  # more than fit in a row
    assert found.shape[:2] == (4, COLUMNS)
    assert_alike(found[2:, :2], np.stack([as_cells(originals), as_cells(vae_run.model.reconstruct(originals))]))


def test_interpolate_leads_from_one_file_to_the_other(vae_run: PigmentCLI, files: list[Path]) -> None:
    originals = torch.cat([read(file) for file in files])
    (row,) = draw("interpolate", last(vae_run), *map(str, files), "--steps=5")
    assert len(row) == 7
    ends = torch.cat([originals, vae_run.model.reconstruct(originals)])
    assert_alike(row[[0, 6, 1, 5]], as_cells(ends))


def test_walk_leads_between_fruits_that_seeds_and_files_find(vae_run: PigmentCLI, files: list[Path]) -> None:
    vae = vae_run.model.eval()
    seeded, unlikely = vae.sample(1, 17), vae.sample(1, 4, "mixture")
    read_back = vae.reconstruct(read(files[0]))
    corners = as_cells(torch.cat([unlikely, seeded, read_back, seeded]))

    square = draw("walk", last(vae_run), "4", "prior:17", str(files[0]), "prior:17", "--steps=5")
    assert square.shape[:2] == (5, 5)
    assert_alike(square[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    (strip,) = draw("walk", last(vae_run), "4", "prior:17")
    assert len(strip) == COLUMNS
    assert_alike(strip[[0, -1]], corners[:2])
    triangle = draw("walk", last(vae_run), "4", "prior:17", str(files[0]), "--steps=3")
    assert_alike(triangle[[0, 0, -1, -1], [0, -1, 0, -1]], corners[[0, 1, 2, 2]])

    draw("walk", last(vae_run), "4", "prior:17", str(files[0]), "7", "--steps=5")
    as_drawn = np.asarray(Image.open("new/grid.png"))
    inner = cells(as_drawn)[1, 3]
    draw("walk", last(vae_run), "4", "prior:17", str(files[0]), "7", "--at=0.75,0.25")
    assert_alike(np.asarray(Image.open("new/grid.png")), inner)


def test_a_fruit_moves_along_the_principal_directions(vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]) -> None:
    draw("walk", last(vae_run), "4@0.5,0,-2")
    vae, directions = vae_run.model.eval(), vae_run.model.codes.directions
    code = vae.draw(1, 4, "mixture") + 0.5 * directions[0] - 2 * directions[2]
    assert_alike(np.asarray(Image.open("new/grid.png")), as_cells(vae.decode(code).detach())[0])
    capsys.readouterr()
    assert main(["walk", "4@1,1,1,1,1", f"--ckpt={last(vae_run)}", "--out=grid.png"]) == 2
    assert capsys.readouterr().err == "error: this VAE has 4 principal directions, not 5\n"


def test_the_spot_of_a_fruit_on_a_map_leads_back_to_it(vae_run: PigmentCLI) -> None:
    vae = vae_run.model.eval()
    chart = Chart.of_new(20, vae)
    assert len(chart.fruits) > 3
    for found in chart.fruits:
        nearest, moves = chart.at(*chart.spot(found.code, vae))
        assert nearest.fruit == found.fruit
        assert moves == [0, 0]


def test_a_map_leads_no_further_from_a_fruit_than_sliders_do(vae_run: PigmentCLI) -> None:
    center, directions = vae_run.model.eval().fitted_codes()[:2]
    codes = [center + side * 10 * directions[:2].sum(dim=0) for side in (-1, 1)]
    fruits = [Found(Fruit(Path(f"{number}.jpg")), code) for number, code in enumerate(codes)]
    chart = Chart.draw(fruits, torch.rand(2, 3, 16, 16), vae_run.model)
    assert max(map(abs, chart.at(0, 1)[1])) == REACH


def test_chart_puts_training_images_where_their_codes_lie(vae_run: PigmentCLI) -> None:
    training = sorted((vae_run.datamodule.folder / "Training").rglob("*.jpg"))
    codes = [Fruit(path).code(vae_run.model) for path in (training[0], training[-1])]
    assert main(["chart", "--number=2", f"--ckpt={last(vae_run)}", "--out=chart.png"]) == 0
    first, second = find_places(torch.stack(codes), vae_run.model)
    chart, side = Image.open("chart.png"), (first - second).sign()
    for path, (x, y) in zip((training[0], training[-1]), (side, -side), strict=True):
        left, top = (0 if side < 0 else MAP_SIZE - THUMBNAIL for side in (x, y))
        found = chart.crop((left, top, left + THUMBNAIL, top + THUMBNAIL))
        assert_alike(np.asarray(found), np.asarray(Image.open(path).resize(found.size)))


def test_of_fruits_that_overlap_the_map_shows_a_typical_one(vae_run: PigmentCLI) -> None:
    vae = vae_run.model.eval()
    center, directions = vae.fitted_codes()[:2]
    codes = [center + steps * directions[0] for steps in (-3, 0, 0.001, 0.002, 3)]
    fruits = [Found(Fruit(Path(f"Pear/{number}.jpg")), code) for number, code in enumerate(codes)]
    chart = Chart.draw(fruits, torch.rand(5, 3, 16, 16), vae)
    assert [str(found.fruit) for found in chart.fruits] == ["Pear/2.jpg", "Pear/0.jpg", "Pear/4.jpg"]
    assert chart.typical == {"Pear": fruits[2]}


def test_a_typical_fruit_of_a_kind_is_the_one_nearest_to_its_mean() -> None:
    codes = {"Pear/first.jpg": 0.0, "Pear/near.jpg": 1.0, "Pear/far.jpg": 9.0, "Apple/only.jpg": 5.0}
    files = [Found(Fruit(Path(path)), torch.tensor([code])) for path, code in codes.items()]
    typical = find_typical([Found(Fruit(("mixture", 3)), torch.zeros(1)), *files])
    assert [*typical.items()] == [("Apple", 4), ("Pear", 2)]


@pytest.mark.parametrize("text", ["17", "prior:17", "17@0.5,0,-2", "gaussian:3@-1", "pear.jpg", "a@b/17.png@0,0.1"])
def test_the_text_of_a_fruit_finds_it_again(text: str) -> None:
    assert str(Fruit.parse(text)) == text
    assert isinstance(Fruit.parse(text).source, Path) == (".jpg" in text or ".png" in text)


def test_a_fruit_is_named_after_its_seed_its_kind_or_its_file() -> None:
    names = {"17": "seed 17", "17@0,0": "seed 17", "prior:17@0,1": "prior seed 17 (moved)"}
    names |= {"Pear/1.jpg": "Pear", "own.jpg": "own.jpg"}
    assert {text: Fruit.parse(text).name for text in names} == names


def test_traverse_goes_along_directions_through_the_mean_code(vae_run: PigmentCLI) -> None:
    rows = draw("traverse", last(vae_run), "--directions=3")
    assert rows.shape[:2] == (3, COLUMNS + 1)
    codes, decode = vae_run.model.codes, vae_run.model.eval().decode
    with torch.no_grad():
        center, end = decode(codes.center[None]), decode((codes.center + 3 * codes.directions[1])[None])
    for row in rows:
        assert_alike(row[COLUMNS // 2], as_cells(center)[0])
    assert_alike(rows[1, -1], as_cells(end)[0])


def test_neighbors_are_the_nearest_training_images(vae_run: PigmentCLI) -> None:
    found = draw("neighbors", last(vae_run), "--number=3")
    samples = vae_run.model.sample(3, 0, "mixture")
    training = torch.cat([read(path) for path in sorted((vae_run.datamodule.folder / "Training").rglob("*.jpg"))])
    nearest = torch.stack([(training - sample).square().sum(dim=(1, 2, 3)).argmin() for sample in samples])
    assert_alike(found, np.stack([as_cells(samples), as_cells(training[nearest])]))


def test_fit_gives_a_checkpoint_its_samplers(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tiny("fit", fruits, "--trainer.callbacks=[callbacks.SaveLast]", "--trainer.max_epochs=1"))
    assert main(["traverse", f"--ckpt={last(run)}", "--out=grid.png"]) == 2
    assert "error: this VAE's only sampler is 'prior'" in capsys.readouterr().err
    assert draw("sample", last(run), "--sampler=prior").shape[:2] == (8, COLUMNS)  # the prior needs none

    assert main(["fit", f"--ckpt={last(run)}", "--out=new/fitted.ckpt", f"--root={fruits}"]) == 0
    images = torch.stack([*run.datamodule.images("train")]) / 255
    codes = run.model.eval().encode(images)[0].detach()
    model = ConvVAE.load_from_checkpoint("new/fitted.ckpt")
    torch.testing.assert_close(model.codes.center, codes.mean(dim=0))
    torch.testing.assert_close(model.codes.directions.T @ model.codes.directions, codes.T.cov(), rtol=1e-3, atol=1e-5)
    assert draw("sample", Path("new/fitted.ckpt")).shape[:2] == (8, COLUMNS)
    train(tiny("fit", fruits, "--ckpt_path=new/fitted.ckpt"))  # it can also be trained on

    assert main(["fit", f"--ckpt={last(run)}", "--out=fitted.safetensors"]) == 2
    assert "error: 'fitted.safetensors' must not end in .safetensors" in capsys.readouterr().err
    assert main(["fit", f"--root={fruits}", "--out=new/shipped.ckpt"]) == 0
    assert ResidualVAE.load_from_checkpoint("new/shipped.ckpt").codes


def test_all_commands_work_on_a_residual_vae(fruits: Path, files: list[Path]) -> None:
    run = train(tiny("fit", fruits, "--trainer.max_epochs=1", config=CONFIGS / "vae_residual.yaml"))
    for command in ("sample", "traverse", "neighbors"):
        draw(command, last(run))
    for command in ("reconstruct", "interpolate"):
        draw(command, last(run), *map(str, files))
    assert main(["fit", f"--ckpt={last(run)}", "--out=fitted.ckpt"]) == 0  # where the run found its images
    assert (draw("sample", Path("fitted.ckpt")) == draw("sample", last(run))).all()


def test_of_images_that_the_checkpoint_does_not_name_none_are_guessed(
    vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(last(vae_run), weights_only=True)
    del checkpoint["datamodule_hyper_parameters"]
    torch.save(checkpoint, "anonymous.ckpt")
    assert main(["fit", "--ckpt=anonymous.ckpt", "--out=fitted.ckpt"]) == 2
    assert "error: the checkpoint does not say what it was trained on; name" in capsys.readouterr().err
    assert main(["fit", "--ckpt=anonymous.ckpt", "--out=fitted.ckpt", f"--root={vae_run.datamodule.folder}"]) == 0


def test_the_vae_that_comes_with_the_project_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--number=2", "--out=grid.png"]) == 0
    assert capsys.readouterr().out.startswith("Model: the VAE that comes with Pigment")
    vae = load_model(FRUIT, VAE)[0]
    expected = mosaic(iter(vae.sample(2, 0, "mixture").cpu()), 2, COLUMNS)
    assert_alike(np.asarray(Image.open("grid.png")), np.asarray(expected))
    assert vae.sample(8, 0, "mixture")[:, :, :2, :2].mean() > 0.95  # fruits lie on white
    assert FRUIT.stat().st_size <= LARGEST


def test_a_file_of_weights_draws_what_its_checkpoint_draws(
    vae_run: PigmentCLI, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert([str(last(vae_run)), "--out=vae.safetensors"]) == 0
    for command, *more in (("sample", "--number=8"), ("traverse",), ("reconstruct", *map(str, files))):
        found, expected = (draw(command, path, *more) for path in (Path("vae.safetensors"), last(vae_run)))
        assert np.abs(found.astype(int) - expected).max() <= 3  # half precision
    assert main(["neighbors", "--ckpt=vae.safetensors", "--out=grid.png"]) == 2
    assert "error: the checkpoint does not say what it was trained on; name" in capsys.readouterr().err
    assert draw("neighbors", Path("vae.safetensors"), f"--root={vae_run.datamodule.folder}").shape[0] == 2


def test_only_a_vae_with_samplers_can_come_with_the_project(
    vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**torch.load(last(vae_run), weights_only=True), "codes": None}, "unfitted.ckpt")
    assert convert(["unfitted.ckpt", "--out=vae.safetensors"]) == 2
    assert "error: this VAE's only sampler is 'prior'" in capsys.readouterr().err
    assert convert([str(last(vae_run)), "--out=vae.bin"]) == 2
    assert "error: 'vae.bin' must end in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "--ckpt=none.ckpt"], "there is no checkpoint 'none.ckpt'"),
        (["sample", "--ckpt=text.ckpt"], "'text.ckpt' is not a whole checkpoint of this program"),
        (["sample", "--ckpt=other.ckpt"], "'other.ckpt' holds a vae.ConvVAE that cannot be rebuilt: "),
        (["reconstruct", "none.jpg"], "'none.jpg' cannot be used: No such file"),
        (["reconstruct", "text.ckpt"], "'text.ckpt' cannot be used: not an image"),
        (["walk", "none.jpg@1"], "'none.jpg' cannot be used: No such file"),
        (["walk", "1", "2", "3", "4", "5"], "a walk is between 4 fruits at most, not 5"),
        (["neighbors", "--root="], "root is empty. Name a folder"),
        (["neighbors", "--root=none"], "there is no folder 'none': root must name"),
        (["sample", "--ckpt=none.ckpt", "--out=text.ckpt/grid.png"], "cannot write to 'text.ckpt': File exists"),
        (["sample", "--ckpt=none.ckpt", "--out=."], "cannot write to '.': it is a folder"),
    ],
)
def test_mistakes_get_a_line(
    arguments: list[str], said: str, vae_run: PigmentCLI, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.ckpt").write_text("I am neither")
    torch.save({"hyper_parameters": {"_class_path": "vae.ConvVAE"}, "state_dict": {}}, "other.ckpt")
    command, *more = arguments
    assert main([command, f"--ckpt={last(vae_run)}", "--out=grid.png", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
