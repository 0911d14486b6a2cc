import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from callbacks import LogSamples
from callbacks.pictures import EpochImages
from images.drawing import COLUMNS, MAP_THUMBNAIL, MARGIN, film_strip, grid, mosaic
from tests.world import CONFIGS, tiny
from train import PigmentCLI, main
from vae import ConvVAE
from vae.chart import latent_map

CELL = 16 + MARGIN


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def cells(picture: np.ndarray) -> np.ndarray:
    """(rows, columns, 16, 16, 3) out of a grid."""
    rows, columns = (side // CELL for side in picture.shape[:2])
    inner = [[picture[r * CELL + MARGIN :, c * CELL + MARGIN :][:16, :16] for c in range(columns)] for r in range(rows)]
    return np.array(inner)


def test_the_same_validation_images_stand_over_their_reconstructions(vae_run: PigmentCLI) -> None:
    pictures = [cells(read(vae_run.run_folder / "media" / "reconstructions" / f"epoch_000{n}.png")) for n in range(3)]
    images = torch.stack([*vae_run.datamodule.images("val")])  # fewer than fit in a row: all of them
    for picture in pictures:
        assert (picture[0] == images.permute(0, 2, 3, 1).numpy()).all()
    reconstructed = vae_run.model.reconstruct(images / 255).mul(255).byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(pictures[-1][1].astype(int) - reconstructed).max() <= 1
    assert not (pictures[0][1] == pictures[1][1]).all()


def test_samples_are_the_same_latents_decoded_anew(vae_run: PigmentCLI) -> None:
    pictures = [cells(read(vae_run.run_folder / "media" / "samples" / f"epoch_000{number}.png")) for number in (0, 2)]
    assert pictures[0].shape == (4, COLUMNS + 1 + COLUMNS, 16, 16, 3)
    for sampler, columns in {"prior": np.s_[:, :COLUMNS], "mixture": np.s_[:, COLUMNS + 1 :]}.items():
        expected = vae_run.model.sample(4 * COLUMNS, 0, sampler).mul(255).byte().permute(0, 2, 3, 1).numpy()
        assert np.abs(pictures[-1][columns].reshape(expected.shape).astype(int) - expected).max() <= 1
    assert not (pictures[0] == pictures[1]).all()


def test_each_epoch_has_a_map_of_validation_images(vae_run: PigmentCLI) -> None:
    canvas = read(vae_run.run_folder / "media" / "latent_map" / "epoch_0002.png")
    images = torch.stack([*vae_run.datamodule.images("val")]) / 255
    expected = latent_map(images, vae_run.model.eval().encode(images)[0].detach())
    is_drawn = (np.minimum(canvas, expected) < 250).any(axis=2)
    assert is_drawn.sum() > 1000
    assert np.abs(canvas.astype(int) - np.asarray(expected))[is_drawn].mean() < 5
    assert not (canvas == read(vae_run.run_folder / "media" / "latent_map" / "epoch_0000.png")).all()


def test_on_the_map_images_lie_as_far_apart_as_their_codes() -> None:
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    codes = torch.zeros(3, 5)
    codes[:, [1, 3]] = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    canvas = np.asarray(latent_map(colors[..., None, None].expand(3, 3, 8, 8), codes))
    places = np.array([np.argwhere((canvas == 255 * color.numpy()).all(axis=2)).mean(axis=0) for color in colors])
    near, far, diagonal = (np.hypot(*(places[i] - places[j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (far / near, diagonal / near) == pytest.approx((4 / 3, 5 / 3), abs=0.01)
    assert min(places.min(), (999 - places).min()) == pytest.approx(MAP_THUMBNAIL / 2, abs=1)  # and fill it


@pytest.mark.parametrize("codes", [torch.zeros(2, 4), torch.rand(1, 4), torch.rand(3, 1)])
def test_there_is_a_map_of_few_images_or_latents(codes: Tensor) -> None:
    assert latent_map(torch.rand(len(codes), 3, 8, 8), codes).size == (1000, 1000)


COLORIZER = CONFIGS / "colorization" / "4_shallow_adam.yaml"


def test_colorizations_stand_between_their_lightness_and_the_originals(paintings: Path) -> None:
    run = main(tiny("fit", paintings, "--trainer.max_epochs=7", config=COLORIZER))
    media = run.run_folder / "media"
    grids = [cells(read(path)) for path in sorted((media / "colorizations").iterdir())]
    assert [path.name for path in sorted((media / "colorizations").iterdir())] == [
        "epoch_0000.png",
        "epoch_0005.png",  # as the config says, every five epochs
        "epoch_0006.png",  # and the last
    ]
    images = torch.stack(list(run.datamodule.val_dataloader().dataset))
    colorized = run.model.colorize(images / 255).mul(255).byte().permute(0, 2, 3, 1).numpy()
    for gray, _, original in grids:
        assert (original == images.permute(0, 2, 3, 1).numpy()).all()
        assert (gray.max(axis=-1) - gray.min(axis=-1)).max() <= 1
        assert np.abs(gray[..., 0] - 255 * rgb2gray_of_lightness(original)).max() <= 1
    assert np.abs(grids[-1][1].astype(int) - colorized).max() <= 1
    assert not (grids[0][1] == grids[1][1]).all()

    film = read(media / "colorizations.png")[:, -grids[0].shape[1] * CELL - MARGIN :]
    rows = [grids[0][0], grids[0][1], grids[1][1], grids[2][1], grids[0][2]]
    assert (cells(film) == np.array(rows)).all()


def rgb2gray_of_lightness(images: np.ndarray) -> np.ndarray:
    """The gray level of the lightness that RGB images (..., 3) have, in [0, 1]."""
    lab = rgb2lab(images)
    lab[..., 1:] = 0
    return lab2rgb(lab)[..., 0]


def test_film_strips_have_a_row_for_each_picture(vae_run: PigmentCLI) -> None:
    media = vae_run.run_folder / "media"
    for name, film_row, epochs, top in (("reconstructions", 1, (0, 1, 2), 0), ("samples", 0, (0, 2), 20)):
        grids = [read(media / name / f"epoch_000{number}.png") for number in epochs]
        strip = read(media / f"{name}.png")[:, -grids[0].shape[1] :]
        headings, strip = strip[:top], strip[top:]
        assert len(strip) == (film_row + len(epochs)) * CELL + MARGIN
        for number, picture in enumerate(grids, start=film_row):
            row = picture[film_row * CELL : (film_row + 1) * CELL]
            assert (strip[number * CELL : (number + 1) * CELL] == row).all()
    from_prior, from_mixture = np.array_split(headings, 2, axis=1)  # the two halves of samples
    assert from_prior.min() < 128 > from_mixture.min()
    originals = read(media / "reconstructions" / "epoch_0000.png")[:CELL]
    assert (read(media / "reconstructions.png")[:CELL, -originals.shape[1] :] == originals).all()


class Interrupt(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_stopped_by_ctrl_c_has_its_film(fruits: Path) -> None:
    with pytest.raises(SystemExit):
        main(tiny("fit", fruits, "--trainer.max_epochs=9", f"--trainer.callbacks+={__name__}.Interrupt"))
    (media,) = Path("runs").glob("*/media")
    assert len(read(media / "reconstructions.png")) == 3 * CELL + MARGIN


def test_pictures_every_no_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="LogSamples: every_n_epochs is 0, must be 1 or more"):
        LogSamples(every_n_epochs=0)


def test_a_long_film_is_thinned_evenly(tmp_path: Path) -> None:
    paths = [tmp_path / f"epoch_{number:04d}.png" for number in range(100)]
    for number, path in enumerate(paths):
        Image.new("RGB", (50, 2 * 20 + MARGIN), (number, 0, 0)).save(path)
    strip = np.asarray(film_strip(paths, num_rows=2, film_row=0, fixed_rows={}))
    shown = strip[10:-MARGIN:20, -1, 0].tolist()
    assert shown == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]


@pytest.mark.parametrize("config", [CONFIGS / "vae.yaml", COLORIZER], ids=["vae", "colorizer"])
def test_callbacks_watch_without_touching(config: Path, fruits: Path) -> None:
    watched = main(tiny("fit", fruits, config=config))
    none = ["--trainer.callbacks=[callbacks.ResumeExactly]", "--trainer.logger=false"]  # it sets the random state
    alone = main(tiny("fit", fruits, *none, config=config))
    assert any(isinstance(callback, EpochImages) for callback in watched.trainer.callbacks)
    assert not any(isinstance(callback, EpochImages) for callback in alone.trainer.callbacks)
    expected = alone.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in watched.model.state_dict().items())


def test_predict_draws_every_image_beside_its_colors(paintings: Path) -> None:
    run = main(tiny("fit", paintings, "--trainer.max_epochs=1", config=COLORIZER))
    predicted = main(tiny("predict", paintings, "--ckpt_path=last", config=COLORIZER))
    pictures = sorted((predicted.run_folder / "media" / "predictions").glob("*.png"))
    assert len(pictures) == 2  # of 4 and 2 images
    image = run.datamodule.val_dataloader().dataset[0]
    pair = torch.cat([image / 255, run.model.colorize(image[None] / 255)[0]], dim=-1).mul(255).byte()
    shown = read(pictures[0])[MARGIN : MARGIN + 16, MARGIN : MARGIN + 32]
    assert np.abs(shown.astype(int) - pair.permute(1, 2, 0).numpy()).max() <= 1


def test_predict_draws_every_image_beside_its_reconstruction(fruits: Path) -> None:
    run = main(tiny("fit", fruits))
    checkpoint = run.run_folder / "checkpoints" / "last.ckpt"
    predicted = main(tiny("predict", fruits, f"--ckpt_path={checkpoint}"))
    pictures = sorted((predicted.run_folder / "media" / "predictions").glob("*.png"))
    assert [path.name for path in pictures] == ["batch_0000_rank_0.png", "batch_0001_rank_0.png"]
    model = ConvVAE.load_from_checkpoint(checkpoint)
    predicted.datamodule.setup("predict")
    image = predicted.datamodule.test_dataloader().dataset[0]
    pair = torch.cat([image / 255, model.reconstruct(image[None] / 255)[0]], dim=-1).mul(255).byte()
    shown = read(pictures[0])[MARGIN : MARGIN + 16, MARGIN : MARGIN + 32]
    assert np.abs(shown.astype(int) - pair.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("num_images", [1, 3, 8, 10])
def test_a_mosaic_is_a_grid_of_images_that_come_one_by_one(num_images: int) -> None:
    images = torch.rand(num_images, 3, 16, 16)
    assert np.array_equal(mosaic(iter(images), num_images, 8), grid(images, 8))
