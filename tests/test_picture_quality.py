"""PSNR, SSIM and distances of translations: against torchmetrics, NumPy formulas and values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgc_distiller.errors import UserError
from sgc_distiller.picture_quality import PictureQuality, mean_translation_distance, psnr, ssim


def random_pair(seed: int, *shape: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return smooth pictures and noisy copies, both beyond [-1, 1] in places."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*shape[:-2], 4, 4, generator=generator)
    planes = coarse.reshape(1, -1, 4, 4)
    smooth = torch.nn.functional.interpolate(planes, size=shape[-2:], mode="bilinear").reshape(shape)
    return smooth, smooth + noise * torch.randn(shape, generator=generator)


def levels(picture: Tensor, border: int) -> np.ndarray:
    """Return (C, H, W) float64 on the scale 0 to 255, as an 8-bit file without its border holds it."""
    values = np.round((picture.double().numpy().clip(-1, 1) + 1) / 2 * 255)
    return values[:, border : values.shape[1] - border, border : values.shape[2] - border]


def luma(values: np.ndarray) -> np.ndarray:
    """The first row of MATLAB's matrix for rgb2ycbcr, for RGB on the scale 0 to 255."""
    red, green, blue = values / 255
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue)[None]


def numpy_psnr(x: np.ndarray, y: np.ndarray) -> float:
    return 20 * np.log10(255 / np.sqrt(np.mean((x - y) ** 2)))


def numpy_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The definition with explicit windows and weighted central moments."""
    row = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(row, row) / row.sum() ** 2
    scores = []
    for plane_x, plane_y in zip(x, y, strict=True):
        windows_x = np.lib.stride_tricks.sliding_window_view(plane_x, (11, 11))
        windows_y = np.lib.stride_tricks.sliding_window_view(plane_y, (11, 11))
        mean_x = (windows_x * weights).sum((-1, -2))
        mean_y = (windows_y * weights).sum((-1, -2))
        off_x, off_y = windows_x - mean_x[..., None, None], windows_y - mean_y[..., None, None]
        var_x, var_y = (off_x**2 * weights).sum((-1, -2)), (off_y**2 * weights).sum((-1, -2))
        cov = (off_x * off_y * weights).sum((-1, -2))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        score = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
        scores.append((score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
    return float(np.mean(scores))


class TestPSNR:
    def test_it_is_worked_out_by_hand(self):
        black = torch.full((3, 4, 4), -1.0)
        assert float(psnr(black, -black)) == pytest.approx(0)  # the error is the peak
        one_off = black.clone()
        one_off[0, 0, 0] += 2 / 255
        assert float(psnr(black, one_off)) == pytest.approx(20 * math.log10(255) + 10 * math.log10(48))

    def test_luma_goes_from_16_to_235(self):
        black, white = torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 1.0)
        assert float(psnr(black, white, channel="y")) == pytest.approx(20 * math.log10(255 / 219))
        red = black.clone()
        red[0] = 1
        assert float(psnr(black, red, channel="y")) == pytest.approx(20 * math.log10(255 / 65.481))

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10**6), st.integers(8, 20), st.integers(8, 20), st.integers(0, 3))
    def test_it_agrees_with_the_formula(self, seed: int, height: int, width: int, border: int):
        x, y = random_pair(seed, 3, height, width)
        inner = levels(x, border), levels(y, border)
        assert float(psnr(x, y, border)) == pytest.approx(numpy_psnr(*inner), rel=1e-9)
        expected = numpy_psnr(luma(inner[0]), luma(inner[1]))
        assert float(psnr(x, y, border, "y")) == pytest.approx(expected, rel=1e-9)

    def test_it_agrees_with_torchmetrics(self, device: torch.device):
        functional = pytest.importorskip("torchmetrics.functional.image")
        x, y = random_pair(1, 3, 24, 30)
        inner = torch.from_numpy(levels(x, 4)), torch.from_numpy(levels(y, 4))
        expected = functional.peak_signal_noise_ratio(*inner, data_range=255.0)
        assert float(psnr(x.to(device), y.to(device), 4)) == pytest.approx(float(expected), rel=1e-6)

    def test_a_batch_is_its_pictures(self):
        x, y = random_pair(2, 5, 3, 16, 16)
        pairs = list(zip(x, y, strict=True))
        for channel in ("rgb", "y"):
            together = psnr(x, y, 2, channel)
            assert together.dtype == torch.float64
            assert together.tolist() == pytest.approx([float(psnr(a, b, 2, channel)) for a, b in pairs])

    def test_equal_pictures_are_infinitely_near(self):
        x, _ = random_pair(3, 3, 16, 16)
        assert float(psnr(x, x)) == math.inf
        assert float(psnr(x, x + 1e-6, channel="y")) == math.inf, "less than a level is no difference"
        assert float(ssim(x, x)) == pytest.approx(1, abs=1e-12)


class TestSSIM:
    @pytest.mark.parametrize("border", [0, 4])
    @pytest.mark.parametrize("seed", range(3))
    def test_it_agrees_with_the_definition(self, seed: int, border: int):
        x, y = random_pair(seed, 3, 27, 22)
        inner = levels(x, border), levels(y, border)
        assert float(ssim(x, y, border)) == pytest.approx(numpy_ssim(*inner), abs=1e-9)
        expected = numpy_ssim(luma(inner[0]), luma(inner[1]))
        assert float(ssim(x, y, border, "y")) == pytest.approx(expected, abs=1e-9)

    def test_it_agrees_with_torchmetrics(self, device: torch.device):
        functional = pytest.importorskip("torchmetrics.functional.image")
        x, y = random_pair(5, 2, 3, 40, 33)
        inner = [torch.stack([torch.from_numpy(levels(one, 0)) for one in item]) for item in (x, y)]
        _, scores = functional.structural_similarity_index_measure(
            *inner, sigma=1.5, kernel_size=11, data_range=255.0, reduction="none", return_full_image=True
        )
        expected = scores[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # without what it mirrors at the edges
        assert ssim(x.to(device), y.to(device)).tolist() == pytest.approx(expected.tolist(), abs=1e-6)

    def test_it_agrees_with_scikit_image(self):
        metrics = pytest.importorskip("skimage.metrics")
        x, y = random_pair(6, 1, 40, 33)
        one, two = levels(x, 0)[0], levels(y, 0)[0]
        _, scores = metrics.structural_similarity(
            one, two, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )
        assert float(ssim(x, y)) == pytest.approx(scores[5:-5, 5:-5].mean(), abs=1e-9)

    def test_more_noise_is_less_similar(self):
        scores = [float(ssim(*random_pair(7, 3, 32, 32, noise=noise))) for noise in (0.05, 0.1, 0.3, 1)]
        assert scores == sorted(scores, reverse=True)

    def test_grey_pictures_have_the_luma_of_their_colour_copies(self):
        x, y = random_pair(8, 1, 16, 16)
        colour = x.expand(3, -1, -1), y.expand(3, -1, -1)
        assert float(ssim(x, y, channel="y")) == pytest.approx(float(ssim(*colour, channel="y")))
        assert float(psnr(x, y)) == pytest.approx(float(psnr(*colour)))


class TestMistakes:
    @pytest.mark.parametrize("measure", [psnr, ssim])
    def test_shapes_and_channels(self, measure):
        picture = torch.zeros(3, 16, 16)
        with pytest.raises(ValueError, match=r"of one shape .* got \(3, 16, 16\) and \(3, 16, 15\)"):
            measure(picture, torch.zeros(3, 16, 15))
        with pytest.raises(ValueError, match=r"1 or 3 channels, got \(2, 16, 16\)"):
            measure(picture[:2], picture[:2])
        with pytest.raises(ValueError, match="Expected the channel 'rgb' or 'y', got 'Y'"):
            measure(picture, picture, channel="Y")

    def test_nothing_left(self):
        picture = torch.zeros(3, 16, 18)
        with pytest.raises(UserError, match="at least 1x1 pixels inside a border of 8, got 16x18 and"):
            psnr(picture, picture, 8)
        with pytest.raises(UserError, match="at least 11x11 pixels inside a border of 3, got 16x18 and"):
            ssim(picture, picture, 3)
        with pytest.raises(UserError, match="got 16x18 and the border -1. Choose a smaller border"):
            psnr(picture, picture, -1)
        assert float(ssim(picture[:, :15], picture[:, :15], 2)) == pytest.approx(1)


class TestPictureQuality:
    def pairs(self, count: int) -> list[tuple[Tensor, Tensor]]:
        return [random_pair(seed, 3, 20 + seed, 30 - seed, noise=0.1 + seed / 30) for seed in range(count)]

    def test_it_is_the_mean_over_pictures_of_any_size(self):
        quality, pairs = PictureQuality(4, "set5"), self.pairs(5)
        for made, target in pairs:
            quality.update(made, target)
        results = quality.compute()
        about = "border 4; reference set5, 5 images]"
        names = [f"PSNR[RGB; {about}", f"PSNR[Y; {about}", f"SSIM[RGB; {about}", f"SSIM[Y; {about}"]
        assert [item.name for item in results] == names
        assert all(item.higher_is_better for item in results)
        measures = [(psnr, "rgb"), (psnr, "y"), (ssim, "rgb"), (ssim, "y")]
        for result, (measure, channel) in zip(results, measures, strict=True):
            values = [float(measure(*pair, 4, channel)) for pair in pairs]
            assert result.value == pytest.approx(np.mean(values))
            reach = 2.7764451 * np.std(values, ddof=1) / math.sqrt(5)  # Student's t with 4 degrees of freedom
            assert result.low == pytest.approx(np.mean(values) - reach, rel=1e-6)
            assert result.high == pytest.approx(np.mean(values) + reach, rel=1e-6)

    def test_lists_and_batches_are_the_same(self):
        one, two = PictureQuality(0, "x"), PictureQuality(0, "x")
        x, y = random_pair(1, 6, 3, 16, 16)
        one.update(x, y)
        two.update(list(x), list(y))
        for first, second in zip(one.compute(), two.compute(), strict=True):
            assert (first.name, first.value) == (second.name, pytest.approx(second.value))

    def test_few_pictures_have_no_interval(self):
        quality = PictureQuality(0, "x")
        quality.update(*random_pair(1, 3, 16, 16))
        result = quality.compute()[0]
        assert result.name == "PSNR[RGB; border 0; reference x, 1 image]"
        assert result.low is result.high is None
        quality.update(*random_pair(1, 3, 3, 16, 16))
        assert quality.compute()[0].low is None

    def test_a_picture_equal_to_its_target_leaves_the_mean_finite_and_is_named(self):
        quality = PictureQuality(0, "x")
        x, y = random_pair(1, 3, 16, 16)
        quality.update(x, y)
        quality.update(x, x)
        rgb, luminance, similarity, _ = quality.compute()
        most = 20 * math.log10(255) + 10 * math.log10(3 * 16 * 16)  # one value of 768 is one level off
        assert rgb.value == pytest.approx((float(psnr(x, y)) + most) / 2)
        assert rgb.name == "PSNR[RGB; border 0; reference x, 2 images, 1 of them equal to the target]"
        assert math.isfinite(luminance.value)
        assert similarity.name == "SSIM[RGB; border 0; reference x, 2 images]"

    def test_mistakes(self):
        quality = PictureQuality(0, "x")
        with pytest.raises(UserError, match="at least 1 picture to compare with its target, got none"):
            quality.compute()
        with pytest.raises(ValueError, match="Expected a target for each of 2 pictures, got 1"):
            quality.update([torch.zeros(3, 16, 16)] * 2, [torch.zeros(3, 16, 16)])
        with pytest.raises(UserError, match="at least 11x11 pixels"):
            quality.update(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
        with pytest.raises(UserError, match="got none"):  # what failed left nothing behind
            quality.compute()


class TestTranslations:
    def test_it_is_worked_out_by_hand(self):
        values = torch.tensor([[-1.0, 0.0, 1.0], [0.5, 0.5, 0.5]])  # distances 1, 2, 1 and 0, 0, 0
        translations = values.view(2, 3, 1, 1, 1).expand(-1, -1, 3, 4, 5)
        assert mean_translation_distance(translations) == pytest.approx((1 + 2 + 1) / 3 / 2)

    def test_its_ends(self):
        assert mean_translation_distance(torch.zeros(2, 4, 3, 8, 8)) == 0
        black = torch.full((1, 1, 3, 8, 8), -1.0)
        assert mean_translation_distance(torch.cat([black, -black], dim=1)) == 2

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0, 1))
    def test_what_draws_translations_together_lowers_it_in_proportion(
        self, seed: int, count: int, share: float
    ):
        made = torch.rand(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        middle = made.mean(dim=1, keepdim=True)
        drawn = mean_translation_distance(middle + (made - middle) * share)
        assert drawn == pytest.approx(share * mean_translation_distance(made))

    @pytest.mark.parametrize("shape", [(2, 1, 3, 4, 4), (0, 2, 3, 4, 4), (2, 3, 4, 4)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]):
        with pytest.raises(ValueError, match=r"Expected translations \(B, T, C, H, W\) with T of at least 2"):
            mean_translation_distance(torch.zeros(shape))
