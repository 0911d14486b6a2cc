import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from datamodules import FruitsDataModule, PaintingsDataModule
from datamodules.demo import fruits as demo
from datamodules.store import read_manifest
from images.reading import as_images
from system.errors import PigmentError
from tests.world import CONFIGS, tiny, write_ball
from train import main


def load(root: Path | str | None, *, batch_size: int = 4, stage: str = "fit", seed: int = 0) -> FruitsDataModule:
    data = FruitsDataModule(str(root) if root else None, size=16, batch_size=batch_size, seed=seed)
    data.prepare_data()
    data.setup(stage)
    return data


def sizes(batches: Sequence[Tensor]) -> list[int]:
    return [len(batch) for batch in batches]


def test_fruits_360_is_split_as_published(fruits: Path) -> None:
    data = load(fruits)
    assert sizes(list(data.train_dataloader())) == [4, 4, 4, 2]
    assert sizes(list(data.val_dataloader())) == sizes(list(data.test_dataloader())) == [4, 3]
    parts = {(Path(entry.path).parts[0], entry.part) for entry in read_manifest(data.store.folder)}
    assert parts == {("Training", "train"), ("Test", "val")}


def test_batches_are_rgb_in_0_to_1_once_they_are_on_the_device(fruits: Path) -> None:
    data = load(fruits)
    batch = next(iter(data.val_dataloader()))
    assert (batch.shape, batch.dtype) == ((4, 3, 16, 16), torch.uint8)
    images = data.on_after_batch_transfer(batch, 0)
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), batch)
    assert images[:, :, 0, 0].min() > 0.95  # the corner is white


def test_the_order_is_a_function_of_seed_and_epoch(fruits: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = load(fruits, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)  # as Lightning does
        return [index % 14 for index in loader.sampler]

    assert order(0, 3) == order(0, 3)
    assert sorted(order(0, 3)) == list(range(14))
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


class Batches(Callback):
    """Keeps the training batches, and the names of their files."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.files: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self.images.append(batch)
        self.files += trainer.datamodule.training_files(batch_idx)


@pytest.mark.parametrize("limit", ["2", "0.5"])
def test_overfitting_repeats_the_first_images_just_as_they_are(limit: str, paintings: Path) -> None:
    options = ["--data.init_args.crop=0.5", f"--trainer.overfit_batches={limit}"]
    options.append(f"--trainer.callbacks+={__name__}.Batches")
    run = main(tiny("fit", paintings, *options, config=CONFIGS / "colorization" / "4_shallow_adam.yaml"))
    assert run.datamodule.flip
    data, (seen,) = run.datamodule, [one for one in run.trainer.callbacks if isinstance(one, Batches)]
    rows = data.store.rows["train"][:8]
    assert torch.equal(torch.cat(seen.images), as_images(data.store.pixels[rows]).repeat(2, 1, 1, 1) / 255)
    assert seen.files == 2 * [data.store.paths()[row] for row in rows]


def test_a_last_batch_of_one_is_left_out_of_training_only(fruits: Path) -> None:
    write_ball(fruits / "Training" / "Lime" / "more.jpg", radius=7, color=(0, 0, 0))
    data = load(fruits, batch_size=7)
    assert sizes(list(data.train_dataloader())) == [7, 7]
    data = load(fruits, batch_size=6)
    assert sizes(list(data.train_dataloader())) == [6, 6, 3]
    assert sizes(list(data.val_dataloader())) == [4, 3]


def test_a_batch_size_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 1, must be 2 or more"):
        FruitsDataModule(None, size=16, batch_size=1)


@pytest.mark.parametrize("crop", [0, 1.1])
def test_a_crop_of_nothing_or_of_more_than_the_image_is_refused(crop: float) -> None:
    with pytest.raises(ValueError, match=f"crop is {crop}, must be over 0, and at most 1, which trains on whole"):
        FruitsDataModule(None, crop=crop)


def test_an_empty_root_is_not_the_current_folder() -> None:
    with pytest.raises(ValueError, match="root is empty"):
        FruitsDataModule("", size=16, batch_size=2)


def test_any_other_folder_is_split_by_content(tmp_path: Path) -> None:
    for index in range(60):
        write_ball(tmp_path / "my fruit" / f"{index}.jpg", radius=1 + 0.1 * index, color=(index, 4 * index, 100))
    data = load(tmp_path / "my fruit", batch_size=60)
    (train,), (val,), (test,) = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert len(train) + len(val) + len(test) == 60
    assert min(len(train), len(val), len(test)) > 0
    assert len(torch.cat([train, val, test]).flatten(1).unique(dim=0)) == 60


def test_files_of_which_more_is_to_say_are_counted_and_on_demand_named(
    paintings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (paintings / "training_set" / "painting" / "0.jpg").write_bytes(b"")
    for list_files in (False, True):
        caplog.clear()
        PaintingsDataModule(str(paintings), size=16, batch_size=4, list_files=list_files).prepare_data()
        said = "\n".join(caplog.messages)
        assert "        13         6  kept\n         1         0  left out: unreadable" in said
        assert ("unreadable  training_set/painting/0.jpg  (empty file)" in said) == list_files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_flips_are_a_function_of_seed_epoch_and_image(paintings: Path, num_workers: int) -> None:
    data = PaintingsDataModule(str(paintings), size=16, batch_size=14, num_workers=num_workers, flip=True)
    data.prepare_data()
    data.setup("fit")
    plain = as_images(data.store.pixels[data.store.rows["train"]]) / 255

    def flips(seed: int, epoch: int) -> list[bool]:
        """Whether each image was mirrored, in the store's order."""
        data.seed = seed
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # as Lightning does
        (batch,) = (data.on_after_batch_transfer(batch, 0) for batch in loader)
        found = []
        for image in plain:
            is_plain, is_mirrored = ((batch == view).flatten(1).all(dim=1).sum() for view in (image, image.flip(-1)))
            assert is_plain + is_mirrored == 1
            found.append(bool(is_mirrored))
        return found

    assert flips(0, 3) == flips(0, 3)
    assert flips(0, 3) != flips(0, 4)
    assert flips(0, 3) != flips(1, 3)
    assert 3 <= sum(flips(0, 3)) <= 11


@pytest.mark.parametrize("num_workers", [0, 2])
def test_crops_are_parts_of_every_size_and_a_function_of_seed_epoch_and_image(tmp_path: Path, num_workers: int) -> None:
    for number in range(20):  # red rises from left to right, green from top to bottom, and blue is the number
        ramp = np.linspace(0, 255, 80).round().astype(np.uint8)
        red, green = np.meshgrid(ramp, ramp)
        Image.fromarray(np.stack([red, green, np.full_like(red, 10 * number)], axis=2)).save(tmp_path / f"{number}.png")
    data = PaintingsDataModule(str(tmp_path), size=40, num_workers=num_workers, crop=0.5)

    def crops(seed: int, epoch: int, batch_size: int = 2) -> dict[int, Tensor]:
        """By the image's number."""
        data.seed, data.batch_size = seed, batch_size
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # as Lightning does
        images = torch.cat(list(loader))
        return {int(image[2].float().mean() / 10 + 0.5): image for image in images}

    def same(one: dict[int, Tensor], other: dict[int, Tensor]) -> bool:
        return all(torch.equal(image, other[number]) for number, image in one.items())

    first = crops(0, 3)
    assert data.larger_store.size == 52  # 1.3 times
    assert len(first) == len(data.images("train"))
    assert same(first, crops(0, 3, batch_size=4))
    assert not same(first, crops(0, 4))
    assert not same(first, crops(1, 3))
    places: list[tuple[int, int, float]] = []
    for image in first.values():
        (left, right), (top, bottom) = (ramp[[0, -1]].tolist() for ramp in (image[0, 20].int(), image[1, :, 20].int()))
        assert right - left == pytest.approx(bottom - top, abs=8)  # square
        places.append((left, top, (right - left) / 255))
    lefts, tops, sides = zip(*places, strict=True)
    assert min(sides) > 0.45
    assert max(sides) - min(sides) > 0.2
    assert max(lefts) > 50
    assert max(tops) > 50
    assert lefts != tops


def test_a_checkpoint_from_within_an_epoch_goes_on_only_with_the_same_batches(fruits: Path) -> None:
    data = load(fruits)
    same = data.state_dict()
    data.begin_at(epoch=0, batch_idx=1)
    other = {"batch_size": 3, "seed": 1, "size": 8, "flip": True, "crop": 0.5, "overfit_batches": 1}
    other |= {"processes": 2, "images": 15}
    assert other.keys() == same.keys()
    for name, value in other.items():
        data.load_state_dict({**same, name: value})
        with pytest.raises(PigmentError, match=f"saved mid-epoch with {name} {value}, now {same[name]}"):
            data.train_dataloader()


def test_nothing_is_flipped_or_cropped_that_is_not_trained_on(paintings: Path) -> None:
    data = PaintingsDataModule(str(paintings), size=16, batch_size=6, flip=True, crop=0.5)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (batch,) = loader
        assert torch.equal(batch, as_images(data.store.pixels[data.store.rows["val"]]))


@pytest.mark.parametrize(("stage", "is_open"), [("fit", True), ("validate", False)])
def test_all_that_a_fit_needs_is_read_before_it_begins(stage: str, is_open: bool, paintings: Path) -> None:
    data = PaintingsDataModule(str(paintings), size=16, batch_size=6, crop=0.5)
    data.prepare_data()
    data.setup(stage)
    assert ("larger_store" in vars(data)) == is_open


def test_a_folder_of_one_image_is_too_few(tmp_path: Path) -> None:
    write_ball(tmp_path / "one" / "only.jpg", radius=5, color=(200, 0, 0))
    with pytest.raises(
        PigmentError,
        match=r"1 usable images, but only \d in \w+, which needs [12]\. Add images .*manifest\.csv",
    ):
        load(tmp_path / "one")


def test_without_a_root_demo_fruits_are_drawn_once_and_said_to_be_such(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_IMAGES", {"Training": 2, "Test": 1})
    data = load(None)
    assert len(data.train_dataloader().dataset) == 2 * len(demo.FRUITS)
    (line,) = [line for line in caplog.messages if "demo fruits" in line]
    assert "--data.init_args.root" in line
    assert capsys.readouterr().err.count("Drawing") > 0
    load(None)
    assert "Drawing" not in capsys.readouterr().err


def test_kaggle_without_kagglehub_says_what_to_install() -> None:
    with pytest.raises(PigmentError, match=r"kagglehub, which is not installed: .venv/bin/pip install 'kagglehub"):
        load("kaggle:moltean/fruits/fruits-360_100x100/fruits-360")


@pytest.fixture
def kaggle(fruits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for kagglehub, which is not installed and has no server to reach here."""

    def dataset_download(handle: str) -> str:
        if handle != "me/images":
            raise RuntimeError("404: no such data set")
        return str(fruits.parent)

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download))


@pytest.mark.usefixtures("kaggle")
def test_kaggle_data_sets_are_fetched_and_their_folders_found() -> None:
    assert len(load("kaggle:me/images/fruits").train_dataloader().dataset) == 14


@pytest.mark.usefixtures("kaggle")
@pytest.mark.parametrize(
    ("root", "why"),
    [("kaggle:me/nothing", "did not deliver .*404.* download it with a browser"), ("kaggle:me", "names no data set")],
)
def test_a_kaggle_data_set_that_is_not_there(root: str, why: str) -> None:
    with pytest.raises(PigmentError, match=why):
        load(root)


def test_a_worker_gets_the_stores_place_and_not_its_pixels(fruits: Path) -> None:
    images = load(fruits).val_dataloader().dataset
    copied = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 2000 < images.store.pixels.nbytes
    assert np.array_equal(copied.store.pixels, images.store.pixels)
