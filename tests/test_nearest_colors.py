import torch

from colorization.color import rgb_to_lab
from colorization.palette import NEAREST, displayable_colors, find_nearest, neighbors


def test_those_nearest_to_a_pixel_are_found_among_those_around_it() -> None:
    colors = displayable_colors()
    cube = torch.cartesian_prod(*3 * [torch.linspace(0, 1, 33)])  # its faces, where the fewest colors are near
    pixels = torch.cat([cube, torch.rand(20_000, 3)]).T[None, :, None]
    chroma = rgb_to_lab(pixels)[:, 1:]
    mixed = (chroma + chroma[..., torch.randperm(chroma.shape[3])]) / 2  # as in an average over pixels
    for given in (chroma, mixed):
        distances, nearest = find_nearest(given, colors, neighbors(colors))
        apart = (given[0, :, 0].T[:, None] - colors).norm(dim=2)
        expected = apart.topk(NEAREST, largest=False).values
        assert torch.allclose(distances[0, 0], expected, atol=1e-3)
        assert torch.allclose(apart.gather(1, nearest[0, 0]), expected, atol=1e-3)


def test_what_is_not_finite_stays_so() -> None:
    colors = displayable_colors()
    spoiled = torch.tensor([torch.nan, torch.inf]).view(1, 2, 1, 1)
    distances, _ = find_nearest(spoiled, colors, neighbors(colors))
    assert not distances.isfinite().any()
