"""The demo fruits: repeatable, on pure white, told apart at a glance, and laid out like Fruits-360."""

from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from datamodules import demo_fruits
from datamodules.demo_fruits import FRUITS, draw_fruit

SEEDS = range(8)


def draw(kind: str, seed: int) -> np.ndarray:
    return draw_fruit(kind, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", FRUITS)
def test_pixels_are_a_function_of_kind_and_seed(kind: str) -> None:
    image = draw(kind, 0)
    assert image.shape == (100, 100, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, draw(kind, 0))
    assert not np.array_equal(image, draw(kind, 1))


@pytest.mark.parametrize("kind", FRUITS)
def test_fruit_fills_the_frame_on_pure_white(kind: str) -> None:
    for image in (draw(kind, seed) for seed in SEEDS):
        assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        fruit = np.any(image < 255, axis=2)
        height, width = (np.ptp(index) + 1 for index in np.nonzero(fruit))
        assert 90 <= max(height, width) <= 100
        assert 0.25 < fruit.mean() < 0.9


@pytest.mark.parametrize("kind", FRUITS)
def test_fruit_has_no_holes(kind: str) -> None:
    for image in (draw(kind, seed) for seed in SEEDS):
        white = np.pad((image == 255).all(axis=2), 1, constant_values=True)
        assert label(white, connectivity=2).max() == 1


@pytest.mark.parametrize("kind", FRUITS)
def test_a_small_change_of_pose_is_a_small_change_of_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    nudged = Mock(wraps=rng)
    nudged.uniform.side_effect = lambda low, high: rng.uniform(low, high) + 1e-3
    still, moved = draw(kind, 0).astype(float), draw_fruit(kind, nudged)
    assert 0 < np.abs(moved - still).mean() < 1.5


def test_any_two_kinds_differ_in_color_or_form() -> None:
    def looks(kind: str) -> np.ndarray:
        """Mean color, and the fruit's share of each ninth of the frame, over several images."""
        images = np.stack([draw(kind, seed) for seed in SEEDS]) / 255
        fruit = np.any(images < 1, axis=3)
        ninths = fruit[:, :99, :99].reshape(len(SEEDS), 3, 33, 3, 33).mean((0, 2, 4))
        return np.concatenate([images[fruit].mean(0), ninths.ravel()])

    seen = {kind: looks(kind) for kind in FRUITS}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(FRUITS, 2)}
    assert min(distances.values()) > 0.1, min(distances, key=distances.__getitem__)


def test_files_are_laid_out_like_fruits_360(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_fruits, "NUM_IMAGES", {"Training": 2, "Test": 1})
    demo_fruits.write_fruits(tmp_path)
    paths = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    numbers = [("Training", 0), ("Training", 1), ("Test", 0)]
    assert paths == {f"{part}/{kind}/{i}_100.jpg" for part, i in numbers for kind in FRUITS}
    assert len({(tmp_path / path).read_bytes() for path in paths}) == len(paths)  # no image is drawn twice
    for path in paths:
        with Image.open(tmp_path / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 100))
