import torch

from colorization.color import rgb_to_lab
from colorization.gamut import NEAREST, displayable_colors, find_nearest, neighbors


def test_the_palette_is_all_that_srgb_can_show_and_nothing_else() -> None:
    colors = displayable_colors()
    assert colors.shape == (259, 2)
    assert [0, 0] in colors.tolist()
    assert (colors % 10 == 0).all()
    apart = torch.cdist(rgb_to_lab(torch.rand(1, 3, 200, 200))[0, 1:].flatten(1).T, colors)
    half_a_diagonal = 50**0.5
    assert apart.min(dim=1).values.max() <= half_a_diagonal  # every color has one that is near
    assert apart.min(dim=0).values.max() <= half_a_diagonal + 3  # and the other way round; random colors leave gaps


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
