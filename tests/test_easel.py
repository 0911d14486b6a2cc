"""What a person does to hints, however quickly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from colorization import PaletteColorizer, ShallowColorizer
from colorization.easel import Easel
from colorization.palette import GAINS
from system.errors import PigmentError


@pytest.fixture
def easel() -> Easel:
    """With a red hint in the middle, and a blue one at the spot."""
    blank = np.zeros((4, 4, 3), np.uint8)
    easel = Easel(Path("a.png"), "4 x 4", blank, blank, vividness=0.5)
    easel.put("red")
    easel.point(0.1, 0.2, when=1)
    easel.put("blue")
    return easel


def texts(easel: Easel) -> list[str]:
    return list(map(str, easel.hints))


def test_a_hint_moves_to_a_free_spot_and_a_second_click_changes_nothing(easel: Easel) -> None:
    red, blue = texts(easel)
    with pytest.raises(PigmentError, match="there is a color at the ring already"):
        easel.move(red)
    easel.point(0.3, 0.4, when=2)
    for _ in range(2):
        easel.move(red)
        assert texts(easel) == ["0.3,0.4,#ff0000", blue]
    easel.undo()
    assert texts(easel) == ["0.5,0.5,#ff0000", "0.1,0.2,#0000ff"]


def test_a_second_click_removes_no_other_hint(easel: Easel) -> None:
    red, blue = texts(easel)
    for _ in range(2):
        easel.remove(red)
        assert texts(easel) == [blue]
    easel.undo()
    assert texts(easel) == [red, blue]


def test_undo_ends_where_everything_began(easel: Easel) -> None:
    for _ in range(5):
        easel.undo()
    assert easel.hints == ()


def test_what_is_no_color_is_said(easel: Easel) -> None:
    with pytest.raises(PigmentError, match="'nonsense' is not a color; use #rrggbb or a name"):
        easel.put("nonsense")


def test_a_command_names_the_vividness_only_of_a_model_that_has_one(easel: Easel) -> None:
    easel.shown = "last.ckpt"
    model = PaletteColorizer(1e-3, 0.05, 10, backbone=None, weights=None, freeze_encoder=False)
    assert "--vividness" not in easel.command(model)  # before its first validation
    model.curve = torch.ones(len(GAINS), 3)
    assert "--vividness 0.5 --hint 0.5,0.5,#ff0000" in easel.command(model).replace("'", "")
    assert "--vividness" not in easel.command(ShallowColorizer("adam", 1e-3, "mse"))


def test_where_a_person_points_last_counts_not_what_arrives_last(easel: Easel) -> None:
    easel.point(0.7, 0.8, when=3)
    easel.point(0.3, 0.4, when=2)
    assert easel.spot == (0.7, 0.8)
