"""Pictures with attributes: the file's format, the baseline's split and crop, and what goes wrong."""

from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sgc_distiller.data import attribute_names, attribute_table, batches, open_attributes
from sgc_distiller.data.attribute_file import usual_attributes
from sgc_distiller.errors import UserError

FIVE = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]


def write_faces(
    folder: Path, count: int, names: str = "Male Young", size: int = 4, head: str | None = None
) -> Path:
    """Write pictures whose first pixel is their number, and an attribute file with random values."""
    (folder / "images").mkdir(parents=True)
    values = np.random.randint(0, 2, (count, len(names.split()))) * 2 - 1
    lines = [f"{i:06d}.png  {'  '.join(map(str, row))}" for i, row in enumerate(values)]
    head = f"{count}\n" if head is None else head
    (folder / "list_attr_celeba.txt").write_text(head + "\n".join([names, *lines]) + "\n")
    for index in range(count):
        pixels = np.full((size, size, 3), index % 256, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:06d}.png")
    return folder


def numbers(split) -> list[int]:  # noqa: ANN001 - an AttributeSet
    return split.load(range(len(split)))["real"][:, 0, 0, 0].tolist()


class TestTable:
    def test_it_is_the_file_line_by_line(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 9, "Male Young Smiling")
        names, files, values = attribute_table(folder)
        assert names == attribute_names(folder) == ["Male", "Young", "Smiling"]
        assert [file.name for file in files] == [f"{index:06d}.png" for index in range(9)]
        assert all(file.is_file() for file in files)
        text = (folder / "list_attr_celeba.txt").read_text().splitlines()[2:]
        assert values.dtype == np.int8
        assert values.tolist() == [[int(word) for word in line.split()[1:]] for line in text]

    @pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_attr.txt", "faces of mine.txt"])
    @pytest.mark.parametrize("head", ["", "3\n"])
    @pytest.mark.parametrize("place", ["images", "img_align_celeba", "."])
    def test_file_count_and_place_of_the_pictures_are_free(
        self, tmp_path: Path, name: str, head: str, place: str
    ):
        (tmp_path / place).mkdir(exist_ok=True)
        for picture in ("a b.png", "c.png", "d.png"):
            Image.new("RGB", (4, 4)).save(tmp_path / place / picture)
        (tmp_path / "readme.txt").write_text("Pictures of faces.\nTheir licence is unknown.\n")
        (tmp_path / name).write_text(f"{head}Male Young\r\na b.png 1 -1\r\nc.png -1 0\r\n\r\nd.png +1 1\r\n")
        names, files, values = attribute_table(tmp_path)
        assert names == ["Male", "Young"]
        assert [file.name for file in files] == ["a b.png", "c.png", "d.png"]
        assert values.tolist() == [[1, -1], [-1, -1], [1, 1]]

    def test_pictures_in_subfolders_are_found(self, tmp_path: Path):
        (tmp_path / "images" / "b").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / "b" / "1.png")
        (tmp_path / "list_attr.txt").write_text("Male\nb/1.png 1\n")
        assert attribute_table(tmp_path)[1] == [tmp_path / "images" / "b" / "1.png"]

    def test_missing_pictures_are_counted_named_and_skipped(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        folder = write_faces(tmp_path / "faces", 15)
        whole = attribute_table(folder)[2]
        for index in (0, 2, 4, 6, 8, 10, 12):
            (folder / "images" / f"{index:06d}.png").unlink()
        with caplog.at_level(logging.WARNING):
            _, files, values = attribute_table(folder)
        (record,) = caplog.records
        assert "7 of the 15 pictures of" in record.message
        assert "000000.png, 000002.png, 000004.png, 000006.png, 000008.png, ...; their" in record.message
        kept = [1, 3, 5, 7, 9, 11, 13, 14]
        assert [int(file.stem) for file in files] == kept
        assert np.array_equal(values, whole[kept])
        (folder / "images" / "000001.png").unlink()
        with pytest.raises(
            UserError, match="8 of the 15 pictures .* are missing in .*Put the pictures there"
        ):
            attribute_table(folder)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"txt:1 to hold the attributes' names, got an empty line"),
            ("2\n\n", r"txt:2 to hold the attributes' names, got an empty line"),
            ("Male Male\na 1 1\n", r"txt:1 to name every attribute once, got 'Male' again"),
            ("Male\n", "Expected lines of pictures in .*, got none"),
            (
                "3\nMale\na 1\nb 1\n",
                "Expected 3 lines of pictures in .*, got 2. Fetch the file again, or corr",
            ),
            ("Male\na 1\nb yes\n", r"txt:3 to hold a picture's name and 1 values, .*; got 'b yes'. Correct"),
            ("1\nMale Young\na 1\n", r"txt:3 to hold a picture's name and 2 values, .*; got 'a 1'"),
            ("Male\na 2\n", r"txt:2 to hold .* each 1 or -1"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_explained(self, tmp_path: Path, text: str, message: str):
        (tmp_path / "list_attr.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            attribute_table(tmp_path)

    def test_no_attribute_file_or_several_are_explained(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"Expected an attribute file \(.*\) in .*, got no .txt file"):
            attribute_table(tmp_path)
        (tmp_path / "notes.txt").write_text("Nothing.")
        with pytest.raises(UserError, match=r"got notes.txt\. It has a line of"):
            attribute_names(tmp_path)
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("Male\n1.png 1\n")
        with pytest.raises(UserError, match=r"Expected one attribute file in .*, got a.txt, b.txt\. Call"):
            attribute_names(tmp_path)
        (tmp_path / "list_attr.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=r"Cannot read the attribute file .*list_attr.txt: .*utf"):
            attribute_names(tmp_path)


class TestAttributes:
    def test_the_baselines_five_are_usual_where_there_are_all(self):
        others = ["Bald", *reversed(FIVE), "Wavy_Hair"]
        assert usual_attributes(others) == FIVE
        assert usual_attributes(others[2:]) == others[2:]

    def test_labels_follow_the_names_asked_for(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 20, "A B C D")
        names, _, values = attribute_table(folder)
        chosen = open_attributes(folder, 4, ["D", "B"], test_last=4)
        assert names == ["A", "B", "C", "D"]
        assert chosen.attributes == ("D", "B")
        assert chosen.labels.dtype == torch.float32
        assert chosen.labels.tolist() == (values[:16][:, [3, 1]] > 0).astype(float).tolist()
        assert chosen.images.labels is chosen.labels
        assert open_attributes(folder, 4).attributes == ("A", "B", "C", "D")
        labels = chosen.load([5, 2], [1, 2])["labels"]
        assert torch.equal(labels, chosen.labels[[5, 2]])

    def test_an_unknown_one_is_refused_with_the_nearest(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 5)
        with pytest.raises(UserError, match=r"got 'Mael'. Did you mean 'Male'\? It has Male, Young\."):
            open_attributes(folder, 4, ["Young", "Mael"])
        with pytest.raises(UserError, match="at most once, got 'Male' again"):
            open_attributes(folder, 4, ["Male", "Male"])
        with pytest.raises(UserError, match="Expected at least one attribute of .*, got none"):
            open_attributes(folder, 4, [])
        with pytest.raises(UserError, match="the set 'coloured-digits', got 'Rde'. Did you mean 'Red'"):
            open_attributes(None, 16, ["Rde"])


class TestSplit:
    def test_it_is_the_baselines(self, tmp_path: Path):
        """Its code: shuffle the lines with Python's random.seed(1234); the first ones are the test set."""
        folder = write_faces(tmp_path / "faces", 23)
        lines = list(range(23))
        random.seed(1234)
        random.shuffle(lines)
        train, test = (open_attributes(folder, 4, split=split) for split in ("train", "test"))
        assert (train.name, test.name) == ("attributes:faces-train19", "attributes:faces-test4")
        assert numbers(test) == lines[:4]
        assert numbers(train) == lines[4:]
        values = attribute_table(folder)[2]
        assert torch.equal(test.labels, torch.from_numpy(values[lines[:4]] > 0).float())

    def test_celeba_has_1999_test_pictures(self):
        from sgc_distiller.data.attributes import _shuffled

        test, train = _shuffled(202_599, "test"), _shuffled(202_599, "train")
        assert (len(test), len(train)) == (1999, 200_600)
        assert sorted(test + train) == list(range(202_599))

    def test_the_last_lines_can_be_the_test_set(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 10)
        assert numbers(open_attributes(folder, 4, split="test", test_last=3)) == [7, 8, 9]
        assert numbers(open_attributes(folder, 4, test_last=3)) == list(range(7))
        for wrong in (10, -1):
            with pytest.raises(UserError, match=f"test_last.* between 1 and 9 for 10 pictures, got {wrong}"):
                open_attributes(folder, 4, test_last=wrong)

    def test_too_few_pictures_cannot_be_divided(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 4)
        with pytest.raises(UserError, match="at least 5 pictures to divide into train and test, got 4"):
            open_attributes(folder, 4, split="test")

    def test_a_fraction_keeps_pictures_and_labels_together(self, tmp_path: Path):
        folder = write_faces(tmp_path / "faces", 40)
        part = open_attributes(folder, 4, fraction=0.25, test_last=8)
        assert part.name == "attributes:faces-train8of32"
        values = attribute_table(folder)[2]
        assert torch.equal(part.labels, torch.from_numpy(values[numbers(part)] > 0).float())


class TestPictures:
    @pytest.mark.parametrize(("width", "height"), [(178, 218), (60, 45), (300, 200), (16, 16)])
    def test_they_are_cropped_before_they_are_resized(self, tmp_path: Path, width: int, height: int):
        pixels = np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir()
        for index in range(5):
            Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        rows = "\n".join(f"{index}.png 1" for index in range(5))
        (tmp_path / "list_attr.txt").write_text(f"Male\n{rows}\n")
        steps = [transforms.CenterCrop(min(178, width, height)), transforms.Resize(24)]
        expected = transforms.PILToTensor()(transforms.Compose(steps)(Image.fromarray(pixels)))
        faces = open_attributes(tmp_path, 24)
        assert torch.equal(faces.load([0])["real"][0], expected)
        assert torch.equal(faces.images.pixels([0])[0], expected)

    def test_half_of_them_are_mirrored_in_training_alone(self):
        digits = open_attributes(None, 16)
        plain = digits.load([7] * 400)["real"]
        assert torch.equal(plain, digits.images.pixels([7] * 400))
        drawn = digits.load([7] * 400, range(400))["real"]
        mirrored = (drawn == plain.flip(-1)).flatten(1).all(1)
        assert torch.equal(drawn[~mirrored], plain[~mirrored])
        assert 160 < mirrored.sum() < 240
        assert torch.equal(plain, digits.images.pixels([7] * 400)), "the set itself has changed"

    def test_a_crop_of_no_pixels_is_refused(self):
        with pytest.raises(UserError, match="crop size of at least 1 pixel, got 0"):
            open_attributes(None, 16, crop_size=0)


class TestBuiltIn:
    def test_labels_can_be_seen_in_the_pictures(self):
        digits = open_attributes("coloured-digits", 32)
        assert digits.attributes == ("Red", "Green", "Blue", "Inverted")
        assert attribute_names(None) == list(digits.attributes)
        assert (digits.labels[:, :3].sum(1) == 1).all()
        assert (digits.labels.mean(0) - torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2])).abs().max() < 0.05
        pictures = digits.images.pixels(range(len(digits))).float()
        assert torch.equal((pictures[:, :, :, :2].mean((1, 2, 3)) > 128).float(), digits.labels[:, 3])
        ink = torch.where(digits.labels[:, 3].bool()[:, None], pictures.amin((2, 3)), pictures.amax((2, 3)))
        assert torch.equal(ink.argmax(1), digits.labels[:, :3].argmax(1))

    def test_its_splits_share_no_digit(self):
        train, test = open_attributes(None, 32), open_attributes(None, 32, split="test")
        assert (len(train), len(test)) == (1437, 360)
        assert (train.name, test.name) == ("coloured-digits-train1437", "coloured-digits-test360")
        assert len(open_attributes(None, 32, split="test", test_last=100)) == 100

    def test_a_batch_has_all_it_needs(self):
        batch = next(batches(open_attributes(None, 32, ["Blue", "Inverted"], fraction=0.1), 8, 0))
        assert batch["real"].shape == (8, 3, 32, 32)
        assert set(batch["labels"].flatten().tolist()) == {0.0, 1.0}


@pytest.mark.shared
def test_real_faces(shared: Path):
    test = open_attributes(shared / "data" / "faces", 64, ["Male", "Young"], "test", test_last=1000)
    assert test.name == "attributes:faces-test1000"
    lines = (shared / "data" / "faces" / "list_attr.txt").read_text().split("\n")[-1001:-1]
    expected = [[float(word == "1") for word in line.split()[1:]] for line in lines]
    assert test.labels.tolist() == expected
    picture = Image.open(shared / "data" / "faces" / "images" / lines[0].split()[0])
    expected_picture = transforms.PILToTensor()(picture.resize((64, 64), Image.Resampling.BILINEAR))
    assert torch.equal(test.load([0])["real"][0], expected_picture)
    first = list(itertools.islice(batches(test, 250, 0), 4))
    assert sum(len(batch["labels"]) for batch in first) == 1000
