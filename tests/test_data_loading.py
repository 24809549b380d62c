"""Batches of every kind of set: what a sample looks like depends on seed, pass and index alone."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgc_distiller import data
from sgc_distiller.data import (
    ImageSet,
    Samples,
    batches,
    open_attributes,
    open_images,
    open_pairs,
    open_superresolution,
    open_unpaired,
)
from sgc_distiller.data.augment import crop, sample_seeds, uniform
from sgc_distiller.errors import UserError
from sgc_distiller.seeding import seed_for

Opened = Callable[[str], Samples]

OPENERS: dict[str, Callable[[Path | None, str], Samples]] = {
    "images": lambda source, split: open_images(source, 16, 3, split, fraction=0.02 if source is None else 1),
    "attributes": lambda source, split: open_attributes(
        source, 16, None, split, 0.02 if source is None else 1
    ),
    "pairs": lambda source, split: open_pairs(source, 16, split, 0.02 if source is None else 1),
    "unpaired": lambda source, split: open_unpaired(source, 16, split, 0.04 if source is None else 1),
    "superresolution": lambda source, split: open_superresolution(source, 16, 4, split),
}


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def write_set(kind: str, folder: Path) -> Path:
    """Write 12 pictures for training and 3 for the test, of sizes that need resizing and cropping."""
    for index in range(15):
        split = "train" if index < 12 else "test"
        place = {
            "images": f"{split}/{index}.png",
            "attributes": f"images/{index}.png",
            "pairs": f"{split}/{index}.png",
            "unpaired": f"{split}{'AB'[index % 2]}/{index}.png",
            "superresolution": f"{split}/{index}.png",
        }[kind]
        save(folder / place, 40 + 2 * (index % 3), 24 + index % 4)
    if kind == "attributes":
        lines = [f"{index}.png {1 if index % 2 else -1} {1 if index % 3 else -1}" for index in range(15)]
        (folder / "list_attr.txt").write_text("\n".join(["15", "Odd Rest", *lines]))
    return folder


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def mixed(state: int) -> int:
    """SplitMix64's output function in whole numbers of Python."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


class TestNumbers:
    def test_they_are_those_of_splitmix64(self):
        """The first numbers for the seed 1234567, as published with its reference implementation."""
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        expected = [(number >> 11) / 2**53 for number in published]
        assert uniform([1234567], 4).tolist() == [expected]

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(-(2**63), 2**64), min_size=1, max_size=5), st.integers(1, 9))
    def test_each_seed_has_its_own_whatever_stands_beside_it(self, seeds: list[int], count: int):
        together = uniform(seeds, count)
        assert together.shape == (len(seeds), count)
        assert ((together >= 0) & (together < 1)).all()
        for seed, row in zip(seeds, together, strict=True):
            assert np.array_equal(uniform([seed], count)[0], row)

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**62), st.integers(0, 9), st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
    def test_a_samples_seed_follows_from_run_pass_and_index(self, seed: int, passes: int, indices: list[int]):
        start = seed_for(seed, "augment", passes)
        expected = [mixed((start + index * 0x9E3779B97F4A7C15) % 2**64) >> 1 for index in indices]
        assert sample_seeds(seed, passes, indices) == expected

    def test_they_are_even_and_do_not_depend_on_each_other(self):
        draws = uniform(sample_seeds(3, 0, range(20000)), 4)
        histogram = np.histogram(draws[:, 0], 20, (0, 1))[0]
        assert ((histogram - 1000) ** 2 / 1000).sum() < 45  # chi-squared, 19 degrees of freedom: p = 0.0007
        assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03


class TestCrop:
    def test_it_cuts_where_the_numbers_say(self):
        rows = [np.arange(5 * 7, dtype=np.uint8).reshape(1, 5, 7)] * 3
        draws = np.array([[0.0, 0.0, 0.9], [0.999, 0.999, 0.9], [0.4, 0.3, 0.1]])
        cut = crop(rows, 3, draws)
        assert cut.shape == (3, 1, 3, 3)
        assert cut[0, 0].tolist() == [[0, 1, 2], [7, 8, 9], [14, 15, 16]]
        assert cut[1, 0].tolist() == [[18, 19, 20], [25, 26, 27], [32, 33, 34]]
        assert cut[2, 0].tolist() == [[10, 9, 8], [17, 16, 15], [24, 23, 22]]  # top 1, left 1, mirrored

    def test_every_place_and_half_of_the_flips_come_up(self):
        row = np.arange(6 * 6, dtype=np.uint8).reshape(1, 6, 6)
        draws = uniform(range(3600), 3)
        corners = crop([row] * 3600, 4, draws)[:, 0]
        mirrored = corners[:, 0, 0] > corners[:, 0, 3]
        assert mirrored.double().mean() == pytest.approx(0.5, abs=0.03)
        first = torch.minimum(corners[:, 0, 0], corners[:, 0, 3])
        counts = first.bincount(minlength=36)[[0, 1, 2, 6, 7, 8, 12, 13, 14]]
        assert counts.sum() == 3600
        assert counts.double().sub(400).abs().max() < 80


@pytest.mark.parametrize("kind", OPENERS)
class TestEveryKind:
    def test_pictures_become_floats_and_labels_stay(self, kind: str):
        samples = OPENERS[kind](None, "train")
        for name, item in samples.load([0, 1], [5, 6]).items():
            assert item.dtype == (torch.float32 if name == "labels" else torch.uint8)
            assert len(item) == 2
        for name, item in next(batches(samples, 4, 0)).items():
            assert item.dtype == torch.float32
            low, high = (0, 1) if name == "labels" else (-1, 1)
            assert low <= item.min() < item.max() <= high
            assert item.shape[0] == 4

    def test_a_start_in_the_middle_continues_the_run(self, kind: str):
        samples = OPENERS[kind](None, "train")
        whole = list(itertools.islice(batches(samples, 16, 7), 9))
        later = list(itertools.islice(batches(samples, 16, 7, start=5), 4))
        assert all(same(a, b) for a, b in zip(whole[5:], later, strict=True))
        assert not same(whole[0], next(batches(samples, 16, 8)))

    def test_seeds_say_it_all(self, kind: str):
        samples = OPENERS[kind](None, "train")
        first, second = samples.load([3, 1, 3], [10, 20, 30]), samples.load([3], [30])
        assert all(torch.equal(first[name][2:], second[name]) for name in first)
        assert same(samples.load([1, 2]), samples.load(range(1, 3)))

    def test_a_pass_is_not_like_the_one_before(self, kind: str):
        samples = OPENERS[kind](None, "train")
        seen: list[list[bytes]] = []
        passes = itertools.islice(batches(samples, len(samples), 1), 2)
        for batch in passes:
            picture = next(item for name, item in batch.items() if name != "labels")
            seen.append(sorted(item.numpy().tobytes() for item in picture))
        assert (seen[0] == seen[1]) == (kind == "images")  # all others are cropped or mirrored anew

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_set_too_large_for_memory_gives_the_same(
        self, kind: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = write_set(kind, tmp_path / "set")
        kept = {split: OPENERS[kind](folder, split) for split in ("train", "test")}
        monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
        read = {split: OPENERS[kind](folder, split) for split in ("train", "test")}
        assert kept["train"].in_memory
        assert not read["train"].in_memory
        for a, b in itertools.islice(
            zip(batches(kept["train"], 5, 1, 1), batches(read["train"], 5, 1, 1, workers), strict=True), 4
        ):
            assert same(a, b)
        for split in ("train", "test"):
            assert len(kept[split]) == len(read[split])
            assert same(kept[split].load(range(2)), read[split].load(range(2)))
            assert same(kept[split].load(range(2), [8, 9]), read[split].load(range(2), [8, 9]))

    def test_it_can_be_sent_to_another_process(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
        for source in (None, write_set(kind, tmp_path / "set")):
            samples = OPENERS[kind](source, "train")
            sent = pickle.loads(pickle.dumps(samples))
            assert same(samples.load([0, 2], [1, 2]), sent.load([0, 2], [1, 2]))

    def test_its_fingerprint_follows_the_content(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = write_set(kind, tmp_path / "set")
        for limit in (2**30, 0):
            monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
            before = OPENERS[kind](folder, "train").fingerprint
            assert before == OPENERS[kind](folder, "train").fingerprint
            for file in folder.rglob("*.png"):
                save(file, 60, 40)
            assert before != OPENERS[kind](folder, "train").fingerprint

    @pytest.mark.parametrize("limit", [2**30, 0])
    def test_a_truncated_picture_is_named(
        self, kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = write_set(kind, tmp_path / "set")
        for file in folder.rglob("*.png"):
            file.write_bytes(file.read_bytes()[:-900])
        monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
        with pytest.raises(UserError, match=r"^Cannot decode the picture .*\.png: .*Repair or remove it\.$"):
            next(batches(OPENERS[kind](folder, "train"), 4, 0))

    def test_a_missing_folder_names_its_neighbour_and_the_built_in_set(self, kind: str, tmp_path: Path):
        (tmp_path / "pictures").mkdir()
        with pytest.raises(
            UserError, match="pictuers does not exist. Did you mean 'pictures'. Give a folder"
        ):
            OPENERS[kind](tmp_path / "pictuers", "train")

    def test_the_size_is_checked_first(self, kind: str):
        with pytest.raises(UserError, match="'train' or 'test', got 'val'"):
            OPENERS[kind](None, "val")


def test_sixteen_bits_and_grey_become_colour(tmp_path: Path):
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(deep).save(tmp_path / split / "deep.png")
        Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / split / "grey.png")
    expected = torch.from_numpy((deep >> 8).astype(np.uint8)).expand(3, 16, 16)
    samples = open_superresolution(tmp_path, 16, 4)
    assert all(torch.equal(samples.pair(index)[1], expected) for index in range(2))


def test_a_set_of_ones_own_needs_three_things(device: torch.device):
    class Own:
        in_memory = True

        def __len__(self) -> int:
            return 5

        def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
            assert seeds is not None
            assert len(seeds) == len(indices)
            return {
                "x": torch.full((len(indices), 1, 1, 1), 255, dtype=torch.uint8),
                "y": torch.tensor(indices),
            }

    batch = next(batches(Own(), 5, 0, device=device))
    assert batch["x"].flatten().tolist() == [1.0] * 5
    assert sorted(batch["y"].tolist()) == list(range(5))
    assert {item.device.type for item in batch.values()} == {device.type}


def test_image_sets_give_real_pictures_alone():
    images = ImageSet("two", torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1), 1, 1)
    assert same(images.load([1], [99]), {"real": torch.tensor([[[[1]]]], dtype=torch.uint8)})
