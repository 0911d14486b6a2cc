import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import PaintingsDataModule
from datamodules.demo import paintings as demo
from datamodules.store import read_manifest
from tests.world import write_bad_files


def load(root: Path | None, size: int = 16) -> PaintingsDataModule:
    data = PaintingsDataModule(str(root) if root else None, size=size, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    return data


def test_kaggles_layout_is_split_as_published_and_the_rest_of_it_left_alone(paintings: Path) -> None:
    shutil.copytree(paintings / "training_set" / "painting", paintings / "training_set" / "sculpture")
    data = load(paintings)
    assert len(data.train_dataloader().dataset) == 14
    assert len(data.val_dataloader().dataset) == len(data.test_dataloader().dataset) == 6
    parts = {(Path(entry.path).parts[:2], entry.part) for entry in read_manifest(data.store.folder)}
    assert parts == {(("training_set", "painting"), "train"), (("validation_set", "painting"), "val")}


def test_a_validation_folder_that_is_partly_a_copy_of_training_is_cleaned(paintings: Path) -> None:
    train, val = paintings / "training_set" / "painting", paintings / "validation_set" / "painting"
    for index in range(5):
        shutil.copy(train / f"{index}.jpg", val / f"other name {index}.jpg")
    reasons = write_bad_files(train, whole=(train / "0.jpg").read_bytes())
    Image.new("RGB", (20, 20), (90, 90, 90)).save(train / "gray.png")
    data = load(paintings)
    assert len(data.val_dataloader().dataset) == 6
    assert len(data.train_dataloader().dataset) == 15
    assert data.store.counts["leak"]["val"] == 5
    assert data.store.counts["unreadable"]["train"] == len(reasons)
    unreadable = {Path(entry.path).name: entry.reason for entry in read_manifest(data.store.folder) if entry.reason}
    assert [name for name, reason in reasons.items() if reason not in unreadable[name].lower()] == []
    assert data.store.counts["colorless"]["train"] == 1
    kept = [set(image.tobytes() for image in data.store.pixels[data.store.rows[part]]) for part in ("train", "val")]
    assert not kept[0] & kept[1]


@pytest.mark.parametrize("size", [(40, 20), (20, 40)])
def test_proportions_are_kept(size: tuple[int, int], paintings: Path) -> None:
    """A disc stays a disc."""
    y, x = np.mgrid[: size[1], : size[0]]
    disc = np.hypot(x - size[0] / 2, y - size[1] / 2)[..., None] < 6
    path = paintings / "training_set" / "painting" / "00.png"
    Image.fromarray(np.where(disc, 0, 255).astype(np.uint8).repeat(3, axis=2)).save(path)
    data = load(paintings, size=40)
    dark = data.store.pixels[data.store.rows["train"][1], ..., 0] < 128
    assert dark.any(axis=0).sum() == pytest.approx(24, abs=2)
    assert dark.any(axis=1).sum() == pytest.approx(24, abs=2)


def test_without_a_root_demo_paintings_are_drawn_and_said_to_be_such(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo, "NUM_IMAGES", {"training_set": 3, "validation_set": 2})
    data = load(None)
    assert (len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)) == (3, 2)
    (line,) = [line for line in caplog.messages if "demo paintings" in line]
    assert "kaggle:thedownhill/" in line
