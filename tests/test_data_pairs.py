"""Pairs and two domains: which half goes where, the same crop for both, partners, and what goes wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sgc_distiller import data
from sgc_distiller.data import batches, open_pairs, open_unpaired
from sgc_distiller.errors import UserError


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def noise(width: int, height: int) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def resized(pixels: np.ndarray, size: int) -> torch.Tensor:
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return transforms.PILToTensor()(image)


class TestPairs:
    @pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
    @pytest.mark.parametrize("test", ["test", "val"])
    def test_halves_are_resized_each_on_its_own(self, tmp_path: Path, direction: str, test: str):
        pixels = noise(40, 24)
        save(tmp_path / "maps" / test / "1.png", pixels)
        pairs = open_pairs(tmp_path / "maps", 16, "test", direction=direction)
        assert pairs.name == "pairs:maps-test1"
        halves = [resized(pixels[:, :20], 16), resized(pixels[:, 20:], 16)]
        given, wanted = halves if direction == "AtoB" else halves[::-1]
        found = pairs.load([0])
        assert torch.equal(found["A"][0], given)
        assert torch.equal(found["B"][0], wanted)
        assert torch.equal(pairs.targets.pixels([0])[0], wanted)
        assert pairs.targets.name == pairs.name

    def test_both_halves_are_cropped_and_mirrored_alike(self, tmp_path: Path):
        """A's pixels hold their place, B's hold 255 minus it: in every crop the two must add up to 255."""
        places = np.arange(15)[:, None] * 16 + np.arange(15)
        left = np.repeat(places[:, :, None], 3, axis=2)
        save(tmp_path / "train" / "1.png", np.concatenate([left, 255 - left], axis=1))
        pairs = open_pairs(tmp_path, 12, load_size=15)
        drawn = pairs.load([0] * 800, range(800))
        assert drawn["A"].shape == drawn["B"].shape == (800, 3, 12, 12)
        assert (drawn["A"].int() + drawn["B"].int() == 255).all()
        ends = drawn["A"][:, 0, 0, [0, 11]].int()
        mirrored = ends[:, 0] > ends[:, 1]
        assert 340 < mirrored.sum() < 460
        corners = set(ends.amin(1).tolist())
        assert corners == {16 * row + column for row in range(4) for column in range(4)}

    def test_the_size_before_cropping_is_286_for_256(self, tmp_path: Path):
        pixels = noise(80, 40)
        save(tmp_path / "train" / "1.png", pixels)
        assert open_pairs(tmp_path, 256).load_size == 286
        pairs = open_pairs(tmp_path, 32)
        assert pairs.load_size == 36
        whole = resized(pixels[:, :40], 36)
        cut = pairs.load([0], [3])["A"][0]
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        matches = (windows == cut).flatten(1).all(1) | (windows == cut.flip(-1)).flatten(1).all(1)
        assert matches.sum() == 1
        assert torch.equal(pairs.load([0])["A"][0], resized(pixels[:, :40], 32))
        with pytest.raises(
            UserError, match="load_size, .* cropped to 32 pixels, to be at least that, got 31"
        ):
            open_pairs(tmp_path, 32, load_size=31)

    @pytest.mark.parametrize("limit", [2**30, 0])
    def test_an_odd_width_is_refused_by_name(
        self, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
        save(tmp_path / "train" / "good.png", noise(20, 10))
        save(tmp_path / "train" / "odd.png", noise(21, 10))
        with pytest.raises(
            UserError, match=r"halves of the same size in .*odd\.png, got an odd width \(21x10\)"
        ):
            next(batches(open_pairs(tmp_path, 8), 2, 0))

    def test_targets_are_decoded_as_needed_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for index in range(3):
            save(tmp_path / "test" / f"{index}.png", noise(20, 10))
        kept = open_pairs(tmp_path, 8, "test").targets
        monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
        read = open_pairs(tmp_path, 8, "test").targets
        assert not read.in_memory
        assert torch.equal(kept.pixels(range(3)), read.pixels(range(3)))
        assert kept.fingerprint != read.fingerprint

    def test_a_folder_without_the_split_is_explained(self, tmp_path: Path):
        (tmp_path / "trian").mkdir()
        with pytest.raises(
            UserError, match="Expected train in .*, got trian. Did you mean 'trian'.*left half"
        ):
            open_pairs(tmp_path, 8)
        with pytest.raises(UserError, match="Expected test or val in .*, got trian"):
            open_pairs(tmp_path, 8, "test")
        (tmp_path / "train").mkdir()
        with pytest.raises(UserError, match="Expected pictures in .*train, got none"):
            open_pairs(tmp_path, 8)
        with pytest.raises(UserError, match="direction 'AtoB' or 'BtoA', got 'B2A'"):
            open_pairs(tmp_path, 8, direction="B2A")


class TestDigitOutlines:
    def test_the_colour_tells_the_class_and_the_outline_does_not(self):
        from sklearn.datasets import load_digits

        pairs = open_pairs("digit-outlines", 32)
        classes = load_digits().target[: len(pairs)]
        views = pairs.load(range(len(pairs)))
        assert torch.equal(views["A"][:, 0], views["A"][:, 1])
        colours = views["B"].flatten(2).amax(2)
        by_class = [set(map(tuple, colours[classes == digit].tolist())) for digit in range(10)]
        assert [len(found) for found in by_class] == [1] * 10
        assert len(set.union(*by_class)) == 10

    def test_an_outline_lies_at_the_edge_of_its_digit(self):
        views = open_pairs(None, 64, "test").load(range(40))
        ink = views["B"].float().amax(1) > 90
        inside = -torch.nn.functional.max_pool2d(-ink.float()[:, None], 7, 1, 3)[:, 0] > 0.5
        outside = torch.nn.functional.max_pool2d(ink.float()[:, None], 9, 1, 4)[:, 0] < 0.5
        outline = views["A"][:, 0].float()
        assert outline[inside].mean() < 0.25 * outline[~inside & ~outside].mean()
        assert outline[outside].mean() < 1

    def test_splits_share_no_digit_and_directions_exchange(self):
        train, test = open_pairs(None, 32), open_pairs(None, 32, "test", direction="BtoA")
        assert (train.name, test.name) == ("digit-outlines-train1437", "digit-outlines-test360")
        there = open_pairs(None, 32, "test").load([4])
        back = test.load([4])
        assert torch.equal(there["A"], back["B"])
        assert torch.equal(there["B"], back["A"])


def write_domains(folder: Path, counts: dict[str, int], size: int = 6) -> Path:
    """Write pictures of one grey each: their number in A, 100 plus their number in B."""
    for name, count in counts.items():
        for index in range(count):
            grey = index + (100 if name.endswith("B") else 0)
            save(folder / name / f"{index:03d}.png", np.full((size, size, 3), grey))
    return folder


def greys(pictures: torch.Tensor) -> list[int]:
    return pictures[:, 0, 0, 0].tolist()


class TestUnpaired:
    @pytest.mark.parametrize(("first", "second"), [(7, 3), (3, 7), (4, 4)])
    def test_a_goes_round_and_b_is_drawn(self, tmp_path: Path, first: int, second: int):
        domains = open_unpaired(write_domains(tmp_path / "h2z", {"trainA": first, "trainB": second}), 6)
        assert domains.name == f"unpaired:h2z-trainA{first} + unpaired:h2z-trainB{second}"
        assert len(domains) == max(first, second)
        view = domains.load(range(len(domains)))
        assert greys(view["A"]) == [index % first for index in range(len(domains))]
        assert greys(view["B"]) == [100 + index % second for index in range(len(domains))]
        drawn = domains.load([len(domains) - 1] * 2000, range(2000))
        assert set(greys(drawn["A"])) == {(len(domains) - 1) % first}
        counts = np.bincount(greys(drawn["B"]), minlength=100 + second)[100:]
        assert counts.sum() == 2000
        assert np.abs(counts - 2000 / second).max() < 5 * np.sqrt(2000 / second)

    def test_partners_change_from_pass_to_pass(self, tmp_path: Path):
        domains = open_unpaired(write_domains(tmp_path, {"trainA": 20, "trainB": 20}), 6)
        passes = list(itertools.islice(batches(domains, 20, 0), 2))
        partners = [dict(zip(greys(batch["A"]), greys(batch["B"]), strict=True)) for batch in passes]
        assert partners[0].keys() == partners[1].keys()
        assert partners[0] != partners[1]

    def test_crops_and_flips_are_independent(self, tmp_path: Path):
        ramp = np.repeat((np.arange(15)[:, None] * 16 + np.arange(15))[:, :, None], 3, axis=2)
        for side in "AB":
            save(tmp_path / f"train{side}" / "1.png", ramp)
        drawn = open_unpaired(tmp_path, 12, load_size=15).load([0] * 1000, range(1000))
        ends = {side: drawn[side][:, 0, 0, [0, 11]].double() for side in "AB"}
        facts = [ends[side].amin(1) for side in "AB"]
        facts += [(ends[side][:, 0] > ends[side][:, 1]).double() for side in "AB"]
        assert (torch.corrcoef(torch.stack(facts)) - torch.eye(4)).abs().max() < 0.12

    def test_sides_are_whole_pictures(self, tmp_path: Path):
        pixels = noise(20, 11)
        save(tmp_path / "set" / "testA" / "1.png", pixels)
        save(tmp_path / "set" / "testB" / "1.png", noise(9, 9))
        domains = open_unpaired(tmp_path / "set", 8, "test")
        side = domains.side("A")
        assert side.name == "unpaired:set-testA1"
        assert torch.equal(side.pixels([0])[0], resized(pixels, 8))
        assert torch.equal(domains.load([0])["A"][0], resized(pixels, 8))
        with pytest.raises(UserError, match="side 'A' or 'B', got 'C'"):
            domains.side("C")

    def test_fractions_are_of_each_domain(self, tmp_path: Path):
        domains = open_unpaired(write_domains(tmp_path / "x", {"trainA": 10, "trainB": 20}), 6, fraction=0.5)
        assert domains.name == "unpaired:x-trainA5of10 + unpaired:x-trainB10of20"
        assert (len(domains.side("A")), len(domains.side("B"))) == (5, 10)

    def test_a_side_that_is_missing_or_empty_is_named(self, tmp_path: Path):
        write_domains(tmp_path, {"trainA": 2, "trianB": 2})
        with pytest.raises(
            UserError, match="Expected trainB in .*, got trainA, trianB. Did you mean 'trianB'"
        ):
            open_unpaired(tmp_path, 6)
        (tmp_path / "trainB").mkdir()
        with pytest.raises(UserError, match="Expected pictures in .*trainB, got none"):
            open_unpaired(tmp_path, 6)
        with pytest.raises(UserError, match="Expected testA in .*Give a folder with the subfolders trainA"):
            open_unpaired(tmp_path, 6, "test")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="Expected trainA in .*empty, got no subfolder"):
            open_unpaired(tmp_path / "empty", 6)


class TestRedAndBlueDigits:
    def test_domains_look_different_and_share_no_digit(self):
        train = open_unpaired("red-blue-digits", 32)
        assert train.name == "red-blue-digits-trainA719 + red-blue-digits-trainB718"
        test = open_unpaired(None, 32, "test")
        assert (len(test.side("A")), len(test.side("B"))) == (180, 180)
        red, blue = (train.side(side).pixels(range(300)).float() for side in "AB")
        assert (red[:, 0] >= red[:, 2]).all()
        assert (blue[:, 2] >= blue[:, 0]).all()
        assert red[:, :, :, 0].mean() < 20
        assert blue[:, :, :, 0].mean() > 235

    def test_half_of_b_is_striped_along_the_diagonal(self):
        blue = open_unpaired(None, 64).side("B").pixels(range(200))[:, 0].float()
        white = (blue == 255).double()
        period = 8
        along = (white[:, 1:, :-1] == white[:, :-1, 1:]).double().mean((1, 2))
        assert ((along > 0.9).sum() - 100).abs() < 10
        assert (white[:, period:] == white[:, :-period]).double().mean() > 0.7


@pytest.mark.shared
def test_real_maps_and_horses(shared: Path):
    maps = open_pairs(shared / "data" / "maps", 128, "test", fraction=0.05)
    assert maps.name == "pairs:maps-test20of400"
    assert maps.load([0])["A"].shape == (1, 3, 128, 128)
    horses = open_unpaired(shared / "data" / "horse2zebra", 64, "test")
    assert horses.name == "unpaired:horse2zebra-testA120 + unpaired:horse2zebra-testB140"
    assert len(horses) == 140


def _write_pair(file: Path, width: int, height: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 10, 10)).save(file)


def test_a_pair_that_lost_a_half_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(4):
        _write_pair(tmp_path / "train" / f"{index}.png", 64, 32)
    _write_pair(tmp_path / "train" / "half.png", 32, 32)
    with caplog.at_level("WARNING"):
        assert len(open_pairs(tmp_path, 32)) == 4
    assert (
        "1 of 5 files are left out, since they are shaped as if a half were missing: half.png" in caplog.text
    )


def test_pairs_of_many_shapes_are_refused(tmp_path: Path) -> None:
    for index, width in enumerate((64, 16, 256, 8, 512)):
        _write_pair(tmp_path / "train" / f"{index}.png", width, 32)
    with pytest.raises(UserError, match=r"got 4 of 5 files of another shape than the middle one: 1\.png"):
        open_pairs(tmp_path, 32)
