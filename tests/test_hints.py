import pytest
import torch
from torch import Tensor

from colorization.hints import Hint, patch_means, propagate, sample


def corrected(lightness: Tensor, *hints: tuple[float, float, float, float], features: Tensor | None = None) -> Tensor:
    """Spread hints (x, y, a, b) over an image (H, W) that was predicted to be gray: (2, H, W)."""
    points, chroma = torch.tensor(hints)[None].split(2, dim=2)
    gray = torch.zeros(1, 2, *lightness.shape)
    features = torch.ones_like(lightness) if features is None else features
    return propagate(chroma, points[0], gray, lightness[None, None], features[None, None])[0]


def test_a_hint_is_read_as_it_is_written() -> None:
    assert Hint.parse("0.3, 0.5,#c03020") == Hint(0.3, 0.5, (192 / 255, 48 / 255, 32 / 255))
    assert Hint.parse("0,1,red") == Hint(0, 1, (1, 0, 0))
    assert Hint.parse("0.5,0.5,rgb(0, 128, 0)").color == (0, 128 / 255, 0)
    assert str(Hint.parse("0.3125,1,#c03020")) == "0.3125,1,#c03020"


@pytest.mark.parametrize("text", ["0.3,0.5", "0.3;0.5;red", "a,b,red", "0.3,0.5,reddish", ""])
def test_what_is_no_hint_is_answered_with_what_is_one(text: str) -> None:
    with pytest.raises(ValueError, match=f"must be x,y,color such as 0.3,0.5,#c03020 or 0.3,0.5,red, not {text}"):
        Hint.parse(text)


@pytest.mark.parametrize("text", ["1.1,0.5,red", "0.5,-0.1,red", "nan,0,red"])
def test_a_point_outside_the_picture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="outside the picture"):
        Hint.parse(text)


def test_points_are_those_of_the_picture_at_any_size() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[0, 0], [0.3, 0.4], [1, 0], [0, 1], [1, 1], [0.99, 0.99]])
    assert sample(maps, points)[0, :, 0].tolist() == [0, 5, 3, 8, 11, 11]


def test_a_patch_at_the_edge_is_the_mean_of_what_there_is() -> None:
    chroma = torch.rand(1, 2, 8, 8)
    means = patch_means(chroma)
    assert torch.allclose(means[..., 0, 0], chroma[..., :2, :2].mean(dim=(2, 3)))
    assert torch.allclose(means[..., 3, 5], chroma[..., 2:5, 4:7].mean(dim=(2, 3)))


def test_each_hint_has_its_color_where_it_is() -> None:
    lightness = torch.rand(64, 96)
    hints = (0.1, 0.2, 0.3, 0.1), (0.5, 0.5, -0.2, 0.2), (0.9, 0.8, 0.0, -0.4)
    chroma = corrected(lightness, *hints)
    for x, y, a, b in hints:
        assert chroma[:, int(64 * y), int(96 * x)].tolist() == pytest.approx([a, b], abs=0.02)


def test_a_color_spreads_to_what_is_near_and_as_light() -> None:
    lightness = torch.full((64, 64), 0.4)
    lightness[:, 40:] = 0.9  # another thing
    chroma = corrected(lightness, (0.5, 0.5, 0.3, 0.0))[0]
    assert (chroma[:, 33:].diff() <= 0).all()  # less and less
    assert chroma[32, 38] > 0.25
    assert chroma[:, 40:].max() < 0.01
    alike = corrected(torch.full((64, 64), 0.4), (0.5, 0.5, 0.3, 0.0), features=lightness)[0]
    assert alike[32, 38] > 0.25
    assert alike[:, 41:].max() < 0.05  # another thing to the network, though as light


def test_two_hints_share_what_lies_between_them() -> None:
    chroma = corrected(torch.full((32, 64), 0.5), (0.25, 0.5, 0.3, 0.0), (0.75, 0.5, -0.3, 0.0))[0, 16]
    assert chroma[:31].min() > 0 > chroma[33:].max()
    assert chroma[16] == pytest.approx(0.3, abs=0.02)


def test_a_hint_reaches_as_far_at_any_size() -> None:
    small, large = (corrected(torch.full((side, side), 0.5), (0.5, 0.5, 0.3, 0.0))[0] for side in (64, 256))
    for share in (0.1, 0.3, 0.45):
        places = [int((0.5 + share) * side) for side in (64, 256)]
        assert small[32, places[0]] == pytest.approx(large[128, places[1]].item(), abs=0.01)
