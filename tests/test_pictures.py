"""Grids and residuals, against pixels worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgc_distiller.pictures import comparison, enlargement, grid, save_comparison, save_grid


def constant(*values: float, size: int = 4, channels: int = 1, device: torch.device | str = "cpu"):
    column = torch.tensor(values, device=device).view(-1, 1, 1, 1)
    return column.expand(-1, channels, size, size)


def first_pixel(picture: Image.Image):
    return picture.getpixel((0, 0))


def test_values_from_minus_one_to_one_become_black_to_white(device):
    for value, grey in ((-1.0, 0), (0.0, 128), (1.0, 255), (-3.0, 0), (7.0, 255), (0.5, 191)):
        assert first_pixel(grid(constant(value, device=device))) == (grey, 255)


def test_pictures_stand_in_rows_with_transparent_gaps(device):
    drawn = np.asarray(grid(constant(-1.0, 0.0, 1.0, device=device), columns=2, scale=1))
    assert drawn.shape == (4 + 2 + 4, 4 + 2 + 4, 2)  # (H, W, grey and opacity)
    assert (drawn[:4, :4] == (0, 255)).all()
    assert (drawn[:4, 6:] == (128, 255)).all()
    assert (drawn[6:, :4] == (255, 255)).all()
    assert (drawn[6:, 6:, 1] == 0).all(), "no fourth picture"
    assert (drawn[4:6, :, 1] == 0).all(), "the gap"


def test_colours_keep_their_channel():
    image = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    assert first_pixel(grid(image, scale=1)) == (255, 0, 128, 255)


@pytest.mark.parametrize(("size", "factor"), [(8, 16), (32, 4), (64, 2), (65, 1), (128, 1), (256, 1)])
def test_small_pictures_are_enlarged_by_whole_factors(size, factor):
    assert enlargement(size) == factor
    assert grid(constant(0.0, size=size)).size == (size * factor, size * factor)


def test_enlarging_repeats_pixels():
    image = torch.tensor([[-1.0, 1.0], [0.0, -1.0]]).view(1, 1, 2, 2)
    drawn = np.asarray(grid(image, scale=3))[..., 0]
    assert (drawn == np.kron([[0, 255], [128, 0]], np.ones((3, 3)))).all()


@given(count=st.integers(1, 9), columns=st.integers(1, 12), height=st.integers(1, 5), width=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_picture_is_in_the_grid(count, columns, height, width):
    images = torch.rand(count, 1, height, width) * 2 - 1
    drawn = np.asarray(grid(images, columns=columns, scale=1))
    shown = min(columns, count)
    for index in range(count):
        top, left = index // shown * (height + 2), index % shown * (width + 2)
        expected = np.round((images[index, 0].double().numpy() + 1) * 127.5)
        assert np.abs(drawn[top : top + height, left : left + width, 0] - expected).max() <= 1


def test_what_is_no_picture_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected pictures of shape \(N, 1 or 3, H, W\).*got \(2, 2, 4, 4\)"
    ):
        grid(torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match="got .* 0 columns"):
        grid(torch.zeros(2, 1, 4, 4), columns=0)


def test_the_residual_is_half_the_difference_around_mid_grey(device):
    dense, sparse = constant(-0.5, 0.2, device=device), constant(0.5, 0.16, device=device)
    panels = comparison(dense, sparse, columns=1)
    assert list(panels) == ["dense", "sparse", "residual", "residual_x10"]
    # (0.5 - -0.5) / 2 = 0.5 -> 127.5 * 1.5 = 191; ten times that is white.
    assert first_pixel(panels["residual"])[0] == 191
    assert first_pixel(panels["residual_x10"])[0] == 255
    # (0.16 - 0.2) / 2 = -0.02 -> 127.5 * 0.98 = 125; ten times: -0.2 -> 127.5 * 0.8 = 102.
    bottom = (0, panels["residual"].height - 1)
    assert panels["residual"].getpixel(bottom)[0] == 125
    assert panels["residual_x10"].getpixel(bottom)[0] == 102


def test_equal_pictures_have_a_grey_residual():
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    drawn = np.asarray(comparison(images, images, columns=4)["residual_x10"])
    assert set(drawn[drawn[..., 3] == 255][:, :3].ravel()) == {128}


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1, 4, 4\) and \(3, 1, 4, 4\)"):
        comparison(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4))


def test_files_hold_what_was_drawn(tmp_path):
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    path = save_grid(images, tmp_path / "new" / "row.png", columns=4)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(grid(images, columns=4)))
    paths = save_comparison(images, -images, tmp_path / "samples")
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        "dense.png",
        "residual.png",
        "residual_x10.png",
        "sparse.png",
    ]
    with Image.open(paths["sparse"]) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(grid(-images, columns=4)))
