"""Loading: what comes out equals the files' content, in an order that depends on seed and number alone."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from sgc_distiller import data
from sgc_distiller.data import ImageSet, batches, in_order, normalise, open_images
from sgc_distiller.errors import UserError


def numbered(count: int) -> ImageSet:
    """Return a set of 1x1 pictures whose pixel is their index."""
    assert count <= 256
    return ImageSet("numbered", torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1), 1, 1)


def indices_of(batch: dict[str, torch.Tensor]) -> list[int]:
    return ((batch["real"] + 1) * 127.5).round().flatten().int().tolist()


def take(count: int, *args, **kwargs) -> list[list[int]]:
    return [indices_of(batch) for batch in itertools.islice(batches(*args, **kwargs), count)]


def write_idx(path: Path, values: np.ndarray) -> None:
    content = (
        bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def random_picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.randint(0, 256, shape, dtype=np.uint8)).save(path)
    return path


class TestDigits:
    def test_pixels_are_those_of_scikit_learn(self):
        from sklearn.datasets import load_digits

        images = open_images("digits", 8, 1)
        expected = np.round(load_digits().images * 255 / 16)
        assert np.array_equal(images.pixels(range(1797)).numpy()[:, 0], expected)
        assert images.pixels([0])[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
        assert images.labels is not None
        assert images.labels.tolist() == load_digits().target.tolist()

    def test_both_splits_are_all_and_the_name_says_so(self):
        train, test = open_images(None, 32, 1), open_images("digits", 32, 1, "test")
        assert train.name == test.name == "digits-all1797"
        assert len(train) == len(test) == 1797
        assert torch.equal(train[1796], test[1796])

    def test_a_picture_is_float_between_minus_one_and_one(self):
        picture = open_images(None, 16, 3)[0]
        assert picture.shape == (3, 16, 16)
        assert picture.dtype == torch.float32
        assert picture.min() == -1
        assert -1 < picture.max() <= 1

    def test_an_index_beyond_the_end_is_refused(self):
        images = numbered(3)
        assert [float(picture) for picture in images] == pytest.approx([-1, -1 + 2 / 255, -1 + 4 / 255])
        with pytest.raises(IndexError, match="Expected an index below 3, got 3"):
            images[3]


class TestFraction:
    def test_it_is_a_fixed_choice_with_its_labels(self):
        whole, part = open_images(None, 8, 1), open_images(None, 8, 1, fraction=0.25)
        assert part.name == "digits-all449of1797"
        assert len(part) == 449
        assert torch.equal(part[7], open_images(None, 8, 1, fraction=0.25)[7])
        assert whole.labels is not None
        assert part.labels is not None
        position = {
            picture.numpy().tobytes(): int(label) for picture, label in zip(whole, whole.labels, strict=True)
        }
        assert [position[picture.numpy().tobytes()] for picture in part] == part.labels.tolist()

    def test_it_is_spread_over_the_whole_set(self, tmp_path: Path):
        write_idx(tmp_path / "train-images-idx3-ubyte", np.arange(200, dtype=np.uint8).reshape(200, 1, 1))
        chosen = open_images(tmp_path, 1, 1, fraction=0.2).pixels(range(40)).flatten()
        assert len(chosen.unique()) == 40
        assert chosen.min() < 40
        assert chosen.max() >= 160

    def test_every_class_stays(self):
        labels = open_images(None, 8, 1, fraction=0.1).labels
        assert labels is not None
        assert labels.unique().tolist() == list(range(10))

    def test_at_least_one_picture_stays(self):
        assert len(open_images(None, 8, 1, fraction=1e-9)) == 1


class TestIdxFiles:
    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.parametrize("below", ["mnist", "mnist/raw", "data/MNIST/raw"])
    def test_pictures_and_labels_are_read(self, tmp_path: Path, ending: str, below: str):
        pixels = np.random.randint(0, 256, (5, 6, 6), dtype=np.uint8)
        write_idx(tmp_path / below / f"t10k-images-idx3-ubyte{ending}", pixels)
        write_idx(tmp_path / below / f"t10k-labels-idx1-ubyte{ending}", np.array([3, 1, 4, 1, 5], np.uint8))
        images = open_images(tmp_path / below.split("/")[0], 6, 3, "test")
        assert images.name == "mnist-test5"
        assert np.array_equal(images.pixels(range(5)).numpy(), pixels[:, None].repeat(3, axis=1))
        assert images.labels is not None
        assert images.labels.tolist() == [3, 1, 4, 1, 5]

    def test_another_set_in_this_format_is_not_called_mnist(self, tmp_path: Path):
        write_idx(tmp_path / "fashion" / "train-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8))
        images = open_images(tmp_path / "fashion", 4, 1)
        assert images.name == "idx:fashion-train2"
        assert images.labels is None

    def test_a_missing_split_is_named(self, tmp_path: Path):
        write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8))
        with pytest.raises(
            UserError, match="Expected the file t10k-images-idx3-ubyte or .*gz in .*, got neither"
        ):
            open_images(tmp_path, 4, 1, "test")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "begin with the idx header 00000803 and 3 sizes, got an empty file"),
            (b"\0\0\x08\x01" + bytes(20), "begin with the idx header 00000803 and 3 sizes, got 00000801"),
            (
                b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(7),
                "Expected 8 bytes .* got 7. .* damaged",
            ),
            (
                b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(9),
                "Expected 8 bytes .* got 9. .* damaged",
            ),
            (
                b"\0\0\x08\x03" + struct.pack(">3I", 0, 2, 2),
                r"Expected pictures in .*, got none.*\(0, 2, 2\)",
            ),
        ],
    )
    def test_a_damaged_file_is_explained(self, tmp_path: Path, content: bytes, message: str):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_images(tmp_path, 4, 1)

    @pytest.mark.parametrize("cut", [1, 20, 60])
    def test_a_truncated_gz_file_is_explained(self, tmp_path: Path, cut: int):
        path = tmp_path / "train-images-idx3-ubyte.gz"
        write_idx(path, np.random.randint(0, 256, (20, 6, 6), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(
            UserError, match="Cannot read .*train-images-idx3-ubyte.gz: .* Fetch the file again"
        ):
            open_images(tmp_path, 4, 1)

    def test_a_file_that_is_no_gz_is_explained(self, tmp_path: Path):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
        with pytest.raises(UserError, match="Cannot read .*Not a gzipped file"):
            open_images(tmp_path, 4, 1)

    def test_labels_must_be_as_many_as_pictures(self, tmp_path: Path):
        write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 4, 4), np.uint8))
        write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
        with pytest.raises(UserError, match="one label a picture in .*, got 2 for the 3 pictures"):
            open_images(tmp_path, 4, 1)

    @pytest.mark.shared
    def test_mnist(self, shared: Path):
        images = open_images(shared / "data" / "mnist", 28, 1, "test", fraction=1.0)
        assert images.name == "mnist-test10000"
        assert images.labels is not None
        assert images.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert images.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert float(images.pixels(range(10000)).double().mean() / 255) == pytest.approx(0.1325, abs=2e-4)


class TestFolders:
    @pytest.mark.parametrize(("width", "height"), [(40, 23), (23, 40), (16, 16), (7, 9), (33, 32)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_pictures_are_those_of_torchvision(self, tmp_path: Path, width: int, height: int, channels: int):
        path = random_picture(tmp_path / "a.png", width, height)
        baseline = transforms.Compose(
            [
                transforms.Resize(16),
                transforms.CenterCrop(16),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * channels, (0.5,) * channels),
            ]
        )
        expected = baseline(Image.open(path).convert("L" if channels == 1 else "RGB"))
        assert torch.equal(open_images(tmp_path, 16, channels)[0], expected)

    def test_all_pictures_below_the_folder_count(self, tmp_path: Path):
        for name in ("b/2.JPG", "a/1.png", "3.webp", ".hidden.png", "._3.jpg"):
            random_picture(tmp_path / "set" / name, 5, 5)
        (tmp_path / "set" / "notes.txt").write_text("no picture")
        images = open_images(tmp_path / "set", 4, 3)
        assert len(images) == 3
        assert images.name == open_images(tmp_path / "set", 4, 3, "test").name == "folder:set-3"
        assert images.labels is None

    def test_train_and_test_are_separate_where_both_exist(self, tmp_path: Path):
        for name in ("train/a.png", "train/b.png", "test/c.png"):
            random_picture(tmp_path / "set" / name, 5, 5)
        assert open_images(tmp_path / "set", 4, 3).name == "folder:set-train2"
        assert open_images(tmp_path / "set", 4, 3, "test").name == "folder:set-test1"
        (tmp_path / "set" / "test" / "c.png").unlink()
        with pytest.raises(UserError, match="Expected pictures in .*test, got none"):
            open_images(tmp_path / "set", 4, 3, "test")

    def test_sixteen_bits_are_scaled_to_eight(self, tmp_path: Path):
        deep = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
        Image.fromarray(deep).save(tmp_path / "deep.png")
        assert np.array_equal(open_images(tmp_path, 4, 1).pixels([0])[0, 0].numpy(), deep >> 8)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_set_too_large_for_memory_gives_the_same(self, tmp_path: Path, monkeypatch, workers: int):
        for index in range(7):
            random_picture(tmp_path / f"{index}.png", 9, 12)
        kept = open_images(tmp_path, 8, 3)
        monkeypatch.setattr(data, "MEMORY_LIMIT", 7 * 3 * 8 * 8 - 1)
        read = open_images(tmp_path, 8, 3)
        assert kept.in_memory
        assert not read.in_memory
        assert all(torch.equal(a, b) for a, b in zip(kept, read, strict=True))
        torch.manual_seed(5)
        for a, b in itertools.islice(
            zip(batches(kept, 3, 1, 2), batches(read, 3, 1, 2, workers), strict=True), 5
        ):
            assert torch.equal(a["real"], b["real"])
        untouched = torch.Generator().manual_seed(5)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=untouched)), (
            "loading drew from the global stream"
        )


class TestMistakes:
    def test_a_missing_folder_names_its_neighbour(self, tmp_path: Path):
        (tmp_path / "pictures").mkdir()
        with pytest.raises(UserError, match="pictuers does not exist. Did you mean 'pictures'.*'digits'"):
            open_images(tmp_path / "pictuers", 8, 1)
        with pytest.raises(UserError, match="nowhere/at/all does not exist. Give a folder"):
            open_images(tmp_path / "nowhere" / "at" / "all", 8, 1)

    def test_a_file_is_not_a_folder(self, tmp_path: Path):
        path = random_picture(tmp_path / "a.png", 3, 3)
        with pytest.raises(UserError, match=r"Expected a folder of pictures, got the file .*a\.png"):
            open_images(str(path), 8, 1)

    def test_an_empty_folder_says_which_files_count(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"Expected pictures in .*, got none.*\.jpeg"):
            open_images(tmp_path, 8, 1)

    @pytest.mark.parametrize("limit", [2**20, 0])
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("damage", ["text", "cut", "empty"])
    def test_a_picture_that_cannot_be_decoded_is_named(
        self, tmp_path: Path, monkeypatch, limit: int, workers: int, damage: str
    ):
        whole = random_picture(tmp_path / "good.png", 30, 30).read_bytes()
        content = {"text": b"this is no picture", "cut": whole[: len(whole) // 2], "empty": b""}[damage]
        (tmp_path / "bad.png").write_bytes(content)
        monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
        with pytest.raises(
            UserError, match=r"^Cannot decode the picture .*bad\.png: .*\. Repair or remove it\.$"
        ):
            next(batches(open_images(tmp_path, 8, 3), 2, 0, workers=workers))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"image_size": 0}, "image size of at least 1 pixel, got 0"),
            ({"channels": 2}, r"1 channel \(grey\) or 3 \(RGB\), got 2"),
            ({"split": "val"}, "'train' or 'test', got 'val'"),
            ({"fraction": 0.0}, "above 0 and at most 1, got 0.0"),
            ({"fraction": 1.5}, "above 0 and at most 1, got 1.5"),
            ({"fraction": float("nan")}, "above 0 and at most 1, got nan"),
        ],
    )
    def test_arguments_out_of_range_are_refused(self, arguments: dict, message: str):
        with pytest.raises(UserError, match=message):
            open_images(None, **{"image_size": 8, "channels": 1, **arguments})

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start": -1}, {"workers": -1}])
    def test_numbers_of_batches_out_of_range_are_refused_at_once(self, wrong: dict[str, int]):
        with pytest.raises(UserError, match="Expected batch_size >= 1, start >= 0 and workers >= 0, got"):
            batches(numbered(3), **{"batch_size": 2, "seed": 0, **wrong})


class TestBatches:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**40))
    def test_a_start_in_the_middle_continues_the_run(self, count: int, size: int, start: int, seed: int):
        images = numbered(count)
        assert take(4, images, size, seed, start) == take(start + 4, images, size, seed)[start:]

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 100))
    def test_each_pass_shows_every_picture_once(self, count: int, size: int, seed: int):
        per_pass = -(-count // size)
        shown = take(3 * per_pass, numbered(count), size, seed)
        for first in range(0, 3 * per_pass, per_pass):
            one_pass = shown[first : first + per_pass]
            assert sorted(itertools.chain(*one_pass)) == list(range(count))
            assert [len(batch) for batch in one_pass[:-1]] == [size] * (per_pass - 1)

    def test_passes_and_seeds_differ(self):
        images = numbered(100)
        first, second = take(2, images, 100, seed=0)
        assert first != second
        assert first != take(1, images, 100, seed=1)[0]

    def test_the_order_never_changes(self):
        assert take(3, numbered(7), 3, seed=0) == [[5, 4, 6], [1, 3, 2], [0]]

    def test_batches_lie_on_the_device(self, device: torch.device):
        images = open_images(None, 8, 3)
        batch = next(batches(images, 5, 0, device=device))["real"]
        assert batch.device.type == device.type
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch.cpu(), next(batches(images, 5, 0))["real"])

    def test_in_order_shows_all_once(self, device: torch.device):
        shown = list(in_order(numbered(7), 3, device))
        assert [len(batch) for batch in shown] == [3, 3, 1]
        assert indices_of({"real": torch.cat(shown)}) == list(range(7))

    def test_normalising_keeps_the_ends(self, device: torch.device):
        ends = normalise(torch.tensor([0, 255, 127, 128], dtype=torch.uint8, device=device)).cpu()
        torch.testing.assert_close(ends, torch.tensor([-1.0, 1.0, -1 / 255, 1 / 255]))

    @pytest.mark.gpu
    def test_copies_to_a_gpu_never_wait(self):
        running = batches(open_images(None, 32, 1), 64, 0, device="cuda")
        next(running)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(40):
                next(running)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestFingerprint:
    def test_it_follows_the_content(self, tmp_path: Path, monkeypatch):
        random_picture(tmp_path / "a.png", 5, 5)
        for limit in (2**20, 0):
            monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
            before = open_images(tmp_path, 4, 1).fingerprint
            assert before == open_images(tmp_path, 4, 1).fingerprint
            assert before != open_images(tmp_path, 5, 1).fingerprint
            assert before != open_images(tmp_path, 4, 3).fingerprint
            random_picture(tmp_path / "a.png", 6, 6)
            assert before != open_images(tmp_path, 4, 1).fingerprint
