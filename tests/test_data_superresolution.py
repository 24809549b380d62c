"""Super-resolution: aligned crops of both sizes, which folder is for what, whole pictures and tiles."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgc_distiller import data
from sgc_distiller.data import open_superresolution
from sgc_distiller.data.bicubic import reduced
from sgc_distiller.data.superresolution_folders import is_test_set
from sgc_distiller.errors import UserError


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def noise(width: int, height: int) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def turns(square: torch.Tensor) -> list[torch.Tensor]:
    """Return the eight ways in which a square (C, H, W) can lie."""
    return [turned for item in (square, square.transpose(1, 2)) for turned in four(item)]


def four(square: torch.Tensor) -> list[torch.Tensor]:
    return [square, square.flip(2), square.flip(1), square.flip(1, 2)]


class TestSamples:
    @pytest.mark.parametrize("limit", [2**30, 0])
    def test_crops_are_cut_from_both_at_the_same_place(
        self, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
        high = tensor(save(tmp_path / "train" / "1.png", noise(43, 34)))[:, :32, :40]
        low = reduced(high, 4)
        samples = open_superresolution(tmp_path, 16, 4)
        drawn = samples.load([0] * 600, range(600))
        assert drawn["low"].shape == (600, 3, 4, 4)
        assert drawn["high"].shape == (600, 3, 16, 16)
        corners = [(top, left) for top in range(5) for left in range(7)]
        ways = {}
        for top, left in corners:
            small = low[:, top : top + 4, left : left + 4]
            large = high[:, 4 * top : 4 * top + 16, 4 * left : 4 * left + 16]
            for way, (a, b) in enumerate(zip(turns(small), turns(large), strict=True)):
                ways[a.numpy().tobytes() + b.numpy().tobytes()] = (top, left, way)
        found = [
            ways[a.numpy().tobytes() + b.numpy().tobytes()]
            for a, b in zip(drawn["low"], drawn["high"], strict=True)
        ]
        assert {place[:2] for place in found} == set(corners)
        counts = np.bincount([place[2] for place in found], minlength=8)
        assert np.abs(counts - 75).max() < 35

    def test_the_test_view_is_the_centre_as_it_is(self, tmp_path: Path):
        high = tensor(save(tmp_path / "train" / "1.png", noise(32, 24)))
        view = open_superresolution(tmp_path, 16, 4).load([0])
        assert torch.equal(view["high"][0], high[:, 4:20, 8:24])
        assert torch.equal(view["low"][0], reduced(high, 4)[:, 1:5, 2:6])

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_whole_pictures_lose_what_the_scale_does_not_divide(self, tmp_path: Path, scale: int):
        pixels = save(tmp_path / "Set5" / "1.png", noise(29, 23))
        samples = open_superresolution(tmp_path, 12, scale, "test")
        low, high = samples.pair(0)
        expected = tensor(pixels)[:, : 23 // scale * scale, : 29 // scale * scale]
        assert torch.equal(high, expected)
        assert low.shape == (3, 23 // scale, 29 // scale)
        assert torch.equal(low, reduced(expected.contiguous(), scale))

    def test_tiles_are_all_squares_without_overlap(self, tmp_path: Path):
        first = tensor(save(tmp_path / "test" / "1.png", noise(33, 20)))
        save(tmp_path / "test" / "2.png", noise(9, 40))
        second = tensor(save(tmp_path / "test" / "3.png", noise(10, 20)))
        (tmp_path / "train").mkdir()
        tiles = open_superresolution(tmp_path, 8, 2, "test").tiles(10)
        expected = [first[:, top : top + 10, left : left + 10] for top in (0, 10) for left in (0, 10, 20)]
        expected += [second[:, :10], second[:, 10:]]
        assert torch.equal(tiles.pixels(range(8)), torch.stack(expected))
        assert tiles.name == f"sr:{tmp_path.name}-test3-tiles8"
        with pytest.raises(
            UserError, match="Expected pictures of at least 64 pixels in sr:.*, got only smaller"
        ):
            open_superresolution(tmp_path, 8, 2, "test").tiles(64)


class TestSmallPictures:
    def test_they_are_skipped_by_name_in_training(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        for index, side in enumerate((40, 19, 16, 15, 18, 40, 12, 3, 4, 5)):
            save(tmp_path / "train" / f"{index}.png", noise(40, side))
        with caplog.at_level(logging.WARNING):
            samples = open_superresolution(tmp_path, 16, 4)
        assert samples.names == [f"train/{index}.png" for index in (0, 1, 2, 4, 5)]
        assert samples.name == f"sr:{tmp_path.name}-train5"
        (record,) = caplog.records
        assert "5 of the 10 training pictures in" in record.message
        assert "of 16 pixels and are skipped: train/3.png, train/6.png, train/7.png, " in record.message

    def test_if_none_is_left_it_is_an_error(self, tmp_path: Path):
        save(tmp_path / "train" / "1.png", noise(40, 15))
        with pytest.raises(
            UserError, match=r"1 of the 1 .* smaller than the crop of 16 pixels: train/1\.png\."
        ):
            open_superresolution(tmp_path, 16, 4)

    def test_test_pictures_stay_but_cannot_be_cropped(self, tmp_path: Path):
        save(tmp_path / "set5" / "small.png", noise(13, 40))
        samples = open_superresolution(tmp_path, 16, 4, "test")
        assert samples.pair(0)[0].shape == (3, 10, 3)
        with pytest.raises(UserError, match=r"at least 16x16 pixels in .*, got set5/small\.png with 12x40"):
            samples.load([0])


class TestFolders:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            *[(name, True) for name in ("Set5", "set14", "BSD100", "b100", "Urban100", "manga109", "VAL")],
            *[("test", True), ("DIV2K_valid_HR", True), ("div2k_valid", True), ("validation", True)],
            *[("yang91", False), ("bsd200", False), ("train", False), ("DIV2K_train_HR", False)],
        ],
    )
    def test_benchmarks_are_known_by_name(self, name: str, expected: bool):
        assert is_test_set(name) == expected

    def test_known_test_sets_are_left_out_of_training(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        for place in ("Set5/a", "Set5/b", "urban100/HR/c", "urban100/LRbicx4/c", "mine/d", "mine/deep/e"):
            save(tmp_path / f"{place}.png", noise(16, 16))
        for place in ("DIV2K_train_LR_bicubic/X4/f", "DIV2K_train_HR/f", "g"):
            save(tmp_path / f"{place}.png", noise(16, 16))
        with caplog.at_level(logging.INFO):
            test = open_superresolution(tmp_path, 16, 4, "test")
        assert "reduced pictures are left out: DIV2K_train_LR_bicubic, LRbicx4" in caplog.text
        assert test.names == ["Set5/a.png", "Set5/b.png", "urban100/HR/c.png"]
        assert test.folders == {"Set5": [0, 1], "urban100": [2]}
        assert (test.split, test.name) == ("test", f"sr:{tmp_path.name}-test3")
        train = open_superresolution(tmp_path, 16, 4)
        assert train.split == "train"
        assert set(train.names) == {"DIV2K_train_HR/f.png", "g.png", "mine/d.png", "mine/deep/e.png"}
        members = {name: [train.names[index] for index in found] for name, found in train.folders.items()}
        assert members["mine"] == ["mine/d.png", "mine/deep/e.png"]

    def test_folders_called_train_and_test_decide(self, tmp_path: Path):
        for place in ("train/a", "train/Set5/b", "test/Set5/c", "test/own/d", "set14/e"):
            save(tmp_path / f"{place}.png", noise(16, 16))
        train, test = (open_superresolution(tmp_path, 16, 4, split) for split in ("train", "test"))
        assert set(train.names) == {"train/a.png", "train/Set5/b.png"}
        assert test.names == ["test/Set5/c.png", "test/own/d.png"]
        assert test.folders == {"Set5": [0], "own": [1]}

    def test_a_fraction_keeps_folders_right(self, tmp_path: Path):
        for index in range(10):
            save(tmp_path / ("set5" if index < 4 else "set14") / f"{index}.png", noise(16, 16))
        half = open_superresolution(tmp_path, 16, 4, "test", fraction=0.5)
        assert half.name == f"sr:{tmp_path.name}-test5of10"
        assert sorted(index for found in half.folders.values() for index in found) == list(range(5))
        for folder, found in half.folders.items():
            assert all(half.names[index].startswith(f"{folder}/") for index in found)

    def test_a_missing_split_is_explained(self, tmp_path: Path):
        save(tmp_path / "Set5" / "a.png", noise(16, 16))
        with pytest.raises(
            UserError, match="Expected training pictures in .*, got none in the subfolders Set5"
        ):
            open_superresolution(tmp_path, 16, 4)
        (tmp_path / "flat").mkdir()
        with pytest.raises(UserError, match="Expected test pictures in .*, got none in no subfolder. Give"):
            open_superresolution(tmp_path / "flat", 16, 4, "test")

    @pytest.mark.parametrize(("crop", "scale"), [(16, 1), (16, 3), (16, 0)])
    def test_the_scale_must_divide_the_crop(self, crop: int, scale: int):
        with pytest.raises(UserError, match=f"at least 2 that divides the crop of 16 pixels, got {scale}"):
            open_superresolution(None, crop, scale)


class TestPhotos:
    def test_train_and_test_show_different_parts(self):
        from sklearn.datasets import load_sample_image

        train, test = open_superresolution(None), open_superresolution("photos", split="test")
        assert (train.name, test.name) == ("photos-train60", "photos-test6")
        assert test.folders == {"photos": list(range(6))}
        china = tensor(load_sample_image("china.jpg").copy())
        assert torch.equal(test.pair(0)[1], china[:, :140, 480:])
        assert torch.equal(train.pair(0)[1], china[:, :160, :160])
        lefts = [int(name.split("-")[2]) for name in train.names]
        assert max(lefts) + 160 <= 480
        assert all(test.pair(index)[1].shape == (3, 140, 160) for index in range(6))

    def test_a_crop_that_does_not_fit_is_refused(self):
        with pytest.raises(UserError, match="crop of at most 160 pixels for the set 'photos', got 192"):
            open_superresolution(None, 192, 4)


@pytest.mark.shared
def test_real_benchmarks(shared: Path):
    test = open_superresolution(shared / "data" / "sr", 64, 4, "test")
    assert {name: len(found) for name, found in test.folders.items()} == {"set5": 5, "set14": 14}
    sizes = [tuple(test.pair(index)[1].shape) for index in test.folders["set5"]]
    assert (3, 512, 512) in sizes
    assert all(height % 4 == width % 4 == 0 for _, height, width in sizes)
    train = open_superresolution(shared / "data" / "sr", 64, 4, fraction=0.1)
    assert train.name == "sr:sr-train29of291"
