"""Bicubic reduction: by hand, against torch's and PIL's own antialiasing, and against mirrored pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgc_distiller.data.bicubic import cubic, reduced, resized, weights


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def dense(length: int, target: int) -> np.ndarray:
    """Return the weights as a matrix (target, length)."""
    indices, factors = weights(length, target)
    matrix = np.zeros((target, length))
    for places, values in zip(indices, factors, strict=True):
        np.add.at(matrix, (np.arange(target), places), values)
    return matrix


class TestKernel:
    def test_values_by_hand(self):
        """Of a = -1/2: 9/16 and -1/16 are the well-known weights halfway between samples."""
        points = np.array([0, 0.5, 1, 1.5, 2, 2.5, -0.5, -1.5, 0.25])
        expected = [1, 9 / 16, 0, -1 / 16, 0, 0, 9 / 16, -1 / 16, 1.5 / 64 - 2.5 / 16 + 1]
        assert cubic(points).tolist() == pytest.approx(expected, abs=1e-15)

    def test_shifted_copies_add_up_to_one(self):
        points = np.linspace(0, 1, 11)
        assert sum(cubic(points - shift) for shift in range(-2, 4)) == pytest.approx(np.ones(11))


class TestWeights:
    def test_halving_by_hand(self):
        """New sample 1 of 4 lies at 2.5 of 8: its neighbours are at 1/4, 3/4, 5/4 and 7/4 of the kernel.

        Its values there are 111, 29, -9 and -3 of 128. Place -1 is beyond the edge and mirrors place 0.
        """
        assert dense(8, 4)[1] == pytest.approx(np.array([-9 - 3, 29, 111, 111, 29, -9, -3, 0]) / 256)

    def test_both_edges_by_hand(self):
        """New sample 0 lies at 0.5: places -1, -2 and -3 are mirrored to 0, 1 and 2."""
        first = np.array([111 + 29, 111 - 9, 29 - 3, -9, -3 + 0, 0, 0, 0]) / 256
        assert dense(8, 4)[0] == pytest.approx(first)
        assert dense(8, 4)[3] == pytest.approx(first[::-1])

    def test_enlarging_by_hand(self):
        """New sample 3 of 8 lies at 1.25 of 4; the kernel is not stretched."""
        assert dense(4, 8)[3] == pytest.approx(np.array([-9, 111, 29, -3]) / 128)

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 40), st.integers(1, 40))
    def test_they_add_up_to_one_and_stay_inside(self, length: int, target: int):
        indices, factors = weights(length, target)
        assert indices.shape == factors.shape
        assert indices.shape[1] == target
        assert factors.sum(axis=0) == pytest.approx(np.ones(target))
        assert 0 <= indices.min() <= indices.max() < length


def torchs(pixels: np.ndarray, height: int, width: int, margin: int) -> np.ndarray:
    """Resize a picture that is mirrored by ``margin`` new pixels around it, and cut the margin off."""
    sides = pixels.shape[-2] // height, pixels.shape[-1] // width
    padding = [(0, 0)] * (pixels.ndim - 2) + [(margin * side, margin * side) for side in sides]
    mirrored = torch.from_numpy(np.pad(pixels.astype(np.float64), padding, mode="symmetric"))
    size = (height + 2 * margin, width + 2 * margin)
    result = F.interpolate(mirrored[None], size=size, mode="bicubic", antialias=True)[0].numpy()
    return result[..., margin:-margin, margin:-margin]


class TestResizing:
    @pytest.mark.parametrize("factor", [2, 3, 4, 8])
    def test_it_is_torchs_antialiased_one_of_a_mirrored_picture(self, factor: int):
        """torch's kernel has a = -1/2 too when it antialiases, but leaves out what is beyond the edge."""
        pixels = picture(3, 12 * factor, 9 * factor)
        ours = resized(pixels, 12, 9)
        assert ours.dtype == np.float64
        assert np.abs(ours - torchs(pixels, 12, 9, margin=4)).max() < 1e-10

    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_it_is_pils_away_from_the_edges(self, factor: int):
        pixels = picture(20 * factor, 16 * factor)
        image = Image.fromarray(pixels.astype(np.float32))
        expected = np.asarray(image.resize((16, 20), Image.Resampling.BICUBIC))
        difference = np.abs(resized(pixels, 20, 16) - expected)
        assert difference[3:-3, 3:-3].max() < 1e-4
        assert difference.max() > 1  # PIL does not mirror

    def test_uneven_sizes_are_resized_too(self):
        pixels = picture(3, 47, 31)
        image = torch.from_numpy(pixels[None].astype(np.float64))
        expected = F.interpolate(image, size=(20, 13), mode="bicubic", antialias=True)[0].numpy()
        difference = np.abs(resized(pixels, 20, 13) - expected)
        assert difference[:, 3:-3, 3:-3].max() < 1e-10

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 3, 4]), st.integers(0, 255))
    def test_a_plain_picture_stays_plain(self, height: int, width: int, factor: int, value: int):
        plain = torch.full((3, height * factor, width * factor), value, dtype=torch.uint8)
        assert torch.equal(reduced(plain, factor), plain[:, :height, :width])


class TestReducing:
    def test_it_is_rounded_once_halves_upwards_and_clipped(self):
        pixels = picture(3, 64, 48)
        pixels[:, :32, :24], pixels[:, :32, 24:] = 0, 255  # an edge, at which the kernel overshoots
        exact = torchs(pixels, 16, 12, margin=4)
        assert exact.min() < 0
        assert exact.max() > 255
        clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-9
        expected = np.clip(np.floor(exact + 0.5), 0, 255)
        assert np.array_equal(reduced(torch.from_numpy(pixels), 4).numpy()[clear], expected[clear])
        half = torch.tensor([[[3, 3, 4, 4]] * 4], dtype=torch.uint8).repeat(1, 1, 2)[:, :, 2:6]
        assert reduced(half, 4).flatten().tolist() == [4]  # 4 4 3 3: 3.5 by symmetry

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_a_window_is_the_same_as_cut_out_of_the_whole(self, draw: st.DataObject):
        factor = draw.draw(st.sampled_from([2, 3, 4]))
        height, width = draw.draw(st.integers(1, 20)), draw.draw(st.integers(1, 20))
        side = draw.draw(st.integers(1, min(height, width)))
        top, left = draw.draw(st.integers(0, height - side)), draw.draw(st.integers(0, width - side))
        pixels = torch.from_numpy(picture(3, height * factor, width * factor))
        whole = reduced(pixels, factor)
        window = reduced(pixels, factor, (top, left, side))
        assert torch.equal(window, whole[:, top : top + side, left : left + side])
