"""The demo fruits are repeatable, lie on pure white, and can be told apart at a glance."""

from functools import cache
from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest
from skimage.measure import label

from datamodules.demo.fruits import FRUITS, draw_fruit


@cache
def draw(kind: str) -> np.ndarray:
    """Eight images of a kind, (8, 100, 100, 3)."""
    return np.stack([draw_fruit(kind, np.random.default_rng(seed)) for seed in range(8)])


@pytest.mark.parametrize("kind", FRUITS)
def test_pixels_are_a_function_of_kind_and_seed(kind: str) -> None:
    first, second, *_ = draw(kind)
    again = draw_fruit(kind, np.random.default_rng(0))
    assert (again.shape, again.dtype) == ((100, 100, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", FRUITS)
def test_fruit_fills_the_frame_on_pure_white_and_has_no_holes(kind: str) -> None:
    for image in draw(kind):
        assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        white = (image == 255).all(axis=2)
        height, width = (np.ptp(index) + 1 for index in np.nonzero(~white))
        assert 90 <= max(height, width) <= 100
        assert 0.1 < white.mean() < 0.75
        assert label(np.pad(white, 1, constant_values=True), connectivity=2).max() == 1


@pytest.mark.parametrize("kind", FRUITS)
def test_a_small_change_of_pose_is_a_small_change_of_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    nudged = Mock(wraps=rng)
    nudged.uniform.side_effect = lambda low, high: rng.uniform(low, high) + 1e-3
    still, moved = draw(kind)[0].astype(float), draw_fruit(kind, nudged)
    assert 0 < np.abs(moved - still).mean() < 1.5


def test_any_two_kinds_differ_in_color_or_form() -> None:
    def look(kind: str) -> np.ndarray:
        """Mean color, and the fruit's share of each ninth of the frame, over all images."""
        images = draw(kind) / 255
        fruit = np.any(images < 1, axis=3)
        ninths = fruit[:, :99, :99].reshape(-1, 3, 33, 3, 33).mean((0, 2, 4))
        return np.concatenate([images[fruit].mean(0), ninths.ravel()])

    looks = {kind: look(kind) for kind in FRUITS}
    distances = {(a, b): np.linalg.norm(looks[a] - looks[b]) for a, b in combinations(FRUITS, 2)}
    assert min(distances.values()) > 0.1, min(distances, key=distances.__getitem__)
