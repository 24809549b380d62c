"""Extractors trained on the user's pictures: what they learn, their validity, their files and cache."""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sgc_distiller import extractor_training, picture_changes
from sgc_distiller.data import ImageSet, normalise
from sgc_distiller.errors import UserError
from sgc_distiller.extractor_training import (
    AttributeClassifier,
    PictureExtractor,
    Validity,
    cached_extractor,
    extractor_file,
    labelled_images,
    train_extractor,
    train_folder_extractor,
    validate,
)
from sgc_distiller.extractor_validity import BLURS, DROPS, NOISES
from sgc_distiller.feature_networks import DIGITS_WEIGHTS, Extractor
from sgc_distiller.labelled_pictures import LabelledSet, holds_digits, open_labelled
from sgc_distiller.picture_network import is_picture_extractor, load_picture_extractor, save_picture_extractor


@pytest.fixture(scope="module")
def digits() -> LabelledSet:
    return open_labelled("coloured-digits", 32)


@pytest.fixture(scope="module")
def trained(digits: LabelledSet) -> PictureExtractor:
    return train_extractor(digits.images, epochs=4, names=digits.names, mirror=False)


@pytest.fixture(scope="module")
def quick() -> PictureExtractor:
    """An extractor of turned pictures after one pass: what it says means nothing."""
    return train_extractor(few(), epochs=1)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SGC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractor_training, "_EPOCHS", (1, 1))
    return tmp_path / "cache" / "extractors"


def few(labels: Tensor | None = None, count: int = 60, channels: int = 3) -> ImageSet:
    pixels = torch.randint(
        0, 256, (count, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    return ImageSet(f"few{count}", pixels, 16, channels, labels)


def write(path: Path, seed: int = 0, size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def numpy_frechet(x: Tensor, y: Tensor) -> float:
    """The definition, with the trace of the root from the eigenvalues of the product."""
    one, two = x.double().numpy(), y.double().numpy()
    cov1, cov2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root_trace = np.sqrt(np.linalg.eigvals(cov1 @ cov2).real.clip(0)).sum()
    return ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root_trace


class TestTraining:
    def test_it_learns_attributes(self, digits: LabelledSet, trained: PictureExtractor):
        record = trained.record
        assert (record.kind, record.targets) == ("attributes", digits.names)
        assert set(record.accuracy) == set(digits.names)
        assert min(record.accuracy.values()) > 0.9
        assert (record.trained_on, record.fingerprint) == (digits.images.name, digits.images.fingerprint)
        assert (record.pictures, record.size, record.seed, record.epochs) == (len(digits.images), 32, 0, 4)

    def test_its_accuracy_holds_for_pictures_that_it_has_not_seen(self, trained: PictureExtractor):
        unseen = open_labelled("coloured-digits", 32, "test").images
        predicted = AttributeClassifier(trained).predict(normalise(unseen.pixels(range(len(unseen)))))
        assert predicted.shape == (len(unseen), len(trained.record.targets))
        assert unseen.labels is not None
        right = ((predicted > 0.5) == (unseen.labels > 0.5)).double().mean(dim=0)
        assert right.tolist() == pytest.approx(list(trained.record.accuracy.values()), abs=0.06)

    def test_the_total_variance_of_the_set_is_a_hundred(self, digits: LabelledSet, trained: PictureExtractor):
        features = trained(normalise(digits.images.pixels(range(len(digits.images)))))
        assert features.shape == (len(digits.images), 64)
        assert np.var(features.double().numpy(), axis=0, ddof=1).sum() == pytest.approx(100, rel=1e-3)

    def test_it_is_small(self, trained: PictureExtractor):
        assert 200_000 < sum(item.numel() for item in trained.network.parameters()) < 500_000

    def test_classes_are_named_and_may_have_gaps(self):
        labels = torch.tensor([0, 2, 7] * 20)
        pixels = few().pixels(range(60)).clone()
        pixels[labels == 2] //= 2
        pixels[labels == 7] //= 4
        images = ImageSet("grades", pixels, 16, 3, labels)
        record = train_extractor(images, epochs=20, names=["light", "unused", "dim"]).record
        assert (record.kind, record.targets) == ("classes", ("light", "dim", "7"))
        assert record.accuracy["class"] >= 5 / 6
        assert record.validity is not None
        assert record.validity.groups == "1 of 3 classes"

    @pytest.mark.parametrize("labels", [None, torch.zeros(60, dtype=torch.int64)])
    def test_without_labels_that_differ_it_learns_rotations(self, labels: Tensor | None):
        skies = few().pixels(range(60)).clone()
        skies[:, :, :8] = 255  # shows which way is up, also when mirrored
        extractor = train_extractor(ImageSet("skies", skies, 16, 3, labels), epochs=20)
        assert extractor.record.kind == "rotations"
        assert extractor.record.targets == ("0 degrees", "90 degrees", "180 degrees", "270 degrees")
        assert extractor.record.accuracy["rotation"] > 0.7
        assert extractor.record.validity is not None
        assert extractor.record.validity.groups == "the darker half of the pictures"

    def test_the_same_seed_gives_the_same_weights(self, quick: PictureExtractor):
        before = torch.random.get_rng_state()
        assert train_extractor(few(), epochs=1).name == quick.name
        assert torch.equal(torch.random.get_rng_state(), before), "the global stream is left alone"
        assert train_extractor(few(), seed=1, epochs=1).name != quick.name
        assert re.fullmatch(r"cnn-[0-9a-f]{8}", quick.name)

    def test_pictures_of_any_size_and_channels_are_accepted(self, quick: PictureExtractor):
        assert quick(torch.zeros(2, 1, 40, 70)).shape == (2, 64)
        grey = torch.rand(2, 1, 16, 16) * 2 - 1
        torch.testing.assert_close(quick(grey), quick(grey.expand(-1, 3, -1, -1)))
        assert not quick(grey.requires_grad_()).requires_grad
        assert train_extractor(few(channels=1), epochs=1).record.size == 16

    def test_many_pictures_are_sampled_and_large_ones_reduced(self, monkeypatch):
        monkeypatch.setattr(extractor_training, "_MOST_PICTURES", 40)
        monkeypatch.setattr(extractor_training, "LARGEST_SIZE", 12)
        record = train_extractor(few(torch.arange(60) % 2), epochs=1).record
        assert (record.pictures, record.size) == (40, 12)

    @pytest.mark.parametrize(("count", "epochs"), [(60, 40), (2500, 12), (10**6, 3)])
    def test_epochs_follow_the_number_of_pictures(self, count: int, epochs: int):
        assert extractor_training._epochs_for(count) == epochs

    def test_mistakes_are_explained(self):
        with pytest.raises(
            UserError, match="at least 20 pictures in few19 to train .* got 19. Name a folder"
        ):
            train_extractor(few(count=19))
        with pytest.raises(UserError, match="at least 8 pixels and 1 epoch, got size 4 and epochs None"):
            train_extractor(few(), size=4)
        with pytest.raises(UserError, match="at least 8 pixels and 1 epoch, got size 16 and epochs 0"):
            train_extractor(few(), epochs=0)
        black = ImageSet("black30", torch.zeros(30, 3, 16, 16, dtype=torch.uint8), 16, 3)
        with pytest.raises(UserError, match="Expected pictures that differ in black30, got features"):
            train_extractor(black, epochs=1)


class TestAugmentation:
    def test_pictures_move_a_little_and_are_mirrored_if_allowed(self):
        pixels = torch.arange(32, dtype=torch.uint8).expand(500, 3, 32, 32)  # each column has its number
        generator = torch.Generator().manual_seed(0)
        moved = picture_changes.augmented(pixels, torch.arange(500), True, generator)
        middle = moved[:, 0, 16, 15:17].int()
        rising = middle[:, 1] > middle[:, 0]
        assert 200 < int(rising.sum()) < 300
        assert set((middle[rising, 0] - 15).tolist()) == {-2, -1, 0, 1, 2}
        still = picture_changes.augmented(pixels, torch.arange(500), False, generator)
        assert bool((still[:, 0, 16, 16] > still[:, 0, 16, 15]).all())

    def test_turning_is_that_of_numpy(self):
        pixels = few().pixels(range(8))
        quarters = torch.arange(8) % 4
        turned = picture_changes.turned(pixels, quarters)
        for index in range(8):
            expected = np.rot90(pixels[index].numpy(), int(quarters[index]), (1, 2))
            assert np.array_equal(turned[index].numpy(), expected)

    def test_blurring_keeps_the_mean_and_spreads_a_point(self):
        point = torch.zeros(1, 1, 33, 33)
        point[..., 16, 16] = 1
        spread = picture_changes.blurred(point, 2.0)[0, 0].double().numpy()
        rows = np.arange(33) - 16.0
        assert spread.sum() == pytest.approx(1, abs=1e-6)
        assert (spread.sum(axis=1) * rows**2).sum() == pytest.approx(4, rel=0.03)  # cut off at 3 deviations
        assert np.allclose(spread, spread.T)

    def test_damage_is_what_was_done(self):
        pictures = torch.zeros(40, 3, 16, 16)
        pictures[..., 8:] = 1
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            changed, damage = picture_changes.damaged(pictures, generator)
            assert torch.equal(changed[20:], pictures[20:])
            assert not damage[20:].any()
            assert not damage[:10, 1].any()
            assert not damage[10:20, 0].any()
            blur, noise = float(damage[0, 0]), float(damage[10, 1])
            expected = picture_changes.blurred(pictures[:10], blur * picture_changes.MOST_BLUR)
            torch.testing.assert_close(changed[:10], expected)
            added = changed[10:20, :, :, :8]  # where nothing is clamped
            assert float(added.std()) == pytest.approx(noise * picture_changes.MOST_NOISE, rel=0.05)
        few_pictures, none = picture_changes.damaged(pictures[:3], generator)
        assert torch.equal(few_pictures, pictures[:3])
        assert not none.any()


class _Blind(Extractor):
    """Sees nothing but the mean of a picture, and that only in one of two features."""

    def __init__(self) -> None:
        super().__init__("blind", 2)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def features(self, pictures: Tensor) -> Tensor:
        return torch.zeros(len(pictures), 2)


class TestValidity:
    def test_a_trained_extractor_is_valid(self, trained: PictureExtractor):
        validity = trained.record.validity
        assert validity is not None
        assert [tuple(strength for strength, _ in validity.table[name]) for name in validity.table] == [
            BLURS,
            NOISES,
            DROPS,
        ]
        assert validity.valid, validity.table
        assert validity.failures == []
        assert validity.groups.endswith("combinations of attributes")
        for pairs in validity.table.values():
            assert all(low[1] < high[1] for low, high in zip(pairs, pairs[1:], strict=False))

    def test_distances_are_those_of_the_definition(self, digits: LabelledSet, trained: PictureExtractor):
        assert digits.images.labels is not None
        assert trained.record.validity is not None
        features = trained(normalise(digits.images.pixels(range(len(digits.images)))))
        cells = sorted({tuple(row) for row in digits.images.labels.tolist()})
        dropped = cells[: len(cells) // 2]
        kept = torch.tensor([tuple(row) not in dropped for row in digits.images.labels.tolist()])
        _, distance = trained.record.validity.table["drop"][-1]
        assert distance == pytest.approx(numpy_frechet(features, features[kept]), rel=1e-3)

    def test_noise_has_the_named_strength(self, trained: PictureExtractor, digits: LabelledSet):
        assert trained.record.validity is not None
        pictures = normalise(digits.images.pixels(range(len(digits.images))))
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(5))
        changed = trained((pictures + NOISES[-1] * noise).clamp(-1, 1))
        _, distance = trained.record.validity.table["noise"][-1]
        assert distance == pytest.approx(numpy_frechet(trained(pictures), changed), rel=0.1)

    def test_the_table_decides(self):
        rising, falling = ((1.0, 2.0), (2.0, 3.0), (3.0, 4.0)), ((1.0, 2.0), (2.0, 3.0), (3.0, 2.9))
        good = Validity("x", {"blur": rising, "noise": rising, "drop": rising})
        assert (good.valid, good.failures) == (True, [])
        bad = Validity("x", {"blur": rising, "noise": falling, "drop": ((1.0, 0.0), *rising[1:])})
        assert (bad.valid, bad.failures) == (False, ["noise", "drop"])
        assert Validity.from_record(bad.as_record()) == bad

    def test_an_extractor_that_sees_nothing_is_not_valid(self):
        validity = validate(_Blind(), few(), None)
        assert validity.failures == ["blur", "noise", "drop"]

    def test_one_class_alone_is_divided_by_brightness(self, quick: PictureExtractor):
        validity = validate(quick, few(), torch.zeros(60, dtype=torch.int64))
        assert validity.groups == "the darker half of the pictures"
        assert validate(quick, few(), torch.arange(60) % 5).groups == "2 of 5 classes"


class TestClassifier:
    def test_attributes_can_be_chosen(self, trained: PictureExtractor):
        names = trained.record.targets
        pictures = torch.rand(4, 3, 48, 48) * 2 - 1
        everything = AttributeClassifier(trained).predict(pictures)
        chosen = AttributeClassifier(trained, names[2:0:-1])
        assert chosen.targets == names[2:0:-1]
        assert torch.equal(chosen.predict(pictures), everything[:, [2, 1]])
        by_extractor = trained.classifier(names[:1])
        assert by_extractor is not None
        assert by_extractor.name == trained.name
        assert torch.equal(by_extractor.predict(pictures), everything[:, :1])
        assert trained.classifier(["Hat"]) is None
        with pytest.raises(UserError, match=f"attributes out of .*, got 'Redd'. Did you mean '{names[0]}'"):
            AttributeClassifier(trained, ["Redd"])

    def test_rotations_are_no_attributes(self, quick: PictureExtractor):
        assert quick.classifier(["0 degrees"]) is None
        with pytest.raises(UserError, match="got cnn-.*, which has learnt rotations of few60. Train one on"):
            AttributeClassifier(quick)

    def test_classes_sum_to_one(self, tmp_path: Path):
        extractor = train_extractor(few(torch.arange(60) % 3), epochs=1)
        save_picture_extractor(extractor, tmp_path / "x.pt")
        probabilities = AttributeClassifier(tmp_path / "x.pt").predict(torch.zeros(2, 3, 16, 16))
        assert probabilities.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


class TestFiles:
    def test_what_was_written_comes_back(self, trained: PictureExtractor, tmp_path: Path):
        path = tmp_path / "new" / "x.pt"
        save_picture_extractor(trained, path)
        again = load_picture_extractor(path)
        assert again.name == trained.name
        assert again.record == trained.record
        pictures = torch.rand(3, 3, 32, 32)
        assert torch.equal(again(pictures), trained(pictures))
        content = torch.load(path, weights_only=True)
        assert content["validity"]["valid"] is True
        assert content["accuracy"] == trained.record.accuracy
        assert path.stat().st_size < 2 * 2**20

    def test_other_weights_have_another_name(self, quick: PictureExtractor, tmp_path: Path):
        save_picture_extractor(quick, tmp_path / "x.pt")
        content = torch.load(tmp_path / "x.pt", weights_only=True)
        content["state_dict"]["scale"] *= 2
        torch.save(content, tmp_path / "y.pt")
        other = load_picture_extractor(tmp_path / "y.pt")
        assert other.name != quick.name
        pictures = torch.rand(3, 3, 16, 16)
        torch.testing.assert_close(other(pictures), 2 * quick(pictures))

    @pytest.mark.parametrize("content", [b"", b"<html>", DIGITS_WEIGHTS.read_bytes()])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes):
        path = tmp_path / "wrong.pt"
        path.write_bytes(content)
        assert not is_picture_extractor(path)
        with pytest.raises(UserError, match=r"'sgc extractor train' wrote in .*wrong\.pt: .*Remove the file"):
            load_picture_extractor(path)

    def test_a_missing_file_is_explained(self, tmp_path: Path):
        assert not is_picture_extractor(tmp_path / "none.pt")
        with pytest.raises(UserError, match=r"Cannot read the weights of a trained extractor at .*none\.pt"):
            load_picture_extractor(tmp_path / "none.pt")


class TestCache:
    def test_a_folder_is_learnt_once(self, own_cache: Path, tmp_path: Path, monkeypatch, caplog):
        for index in range(24):
            write(tmp_path / "data" / f"{index}.png", index)
        with caplog.at_level(logging.INFO):
            first = cached_extractor(tmp_path / "data", 16)
        assert "Training an extractor on folder:data-24, once" in caplog.text
        assert [item.name for item in own_cache.iterdir()] == [
            extractor_file(labelled_images(tmp_path / "data", 16)).name
        ]
        monkeypatch.setattr(extractor_training, "train_extractor", lambda *_, **__: pytest.fail("trained"))
        assert cached_extractor(tmp_path / "data", 16).name == first.name

    def test_of_several_who_want_it_at_once_one_trains_it(self, own_cache: Path, monkeypatch):
        pytest.importorskip("fcntl", reason="requires: locks of files")
        trained = []
        train = extractor_training.train_extractor

        def slowly(*given: Any, **settings: Any) -> Any:
            trained.append(1)
            time.sleep(0.3)
            return train(*given, **settings)

        monkeypatch.setattr(extractor_training, "train_extractor", slowly)
        with ThreadPoolExecutor(3) as several:
            names = list(several.map(lambda _: cached_extractor(few()).name, range(3)))
        assert len(trained) == len(set(names)) == 1

    def test_new_pictures_sizes_and_labels_are_learnt_anew(self, own_cache: Path, tmp_path: Path):
        sets = [few(), few(torch.arange(60) % 2), few(torch.arange(60) % 3), few(count=59)]
        names = [cached_extractor(item).name for item in sets]
        assert len(set(names)) == len(list(own_cache.iterdir())) == 4
        for index in range(24):
            write(tmp_path / "data" / f"{index}.png", index)
        assert cached_extractor(tmp_path / "data", 16).record.size == 16
        assert cached_extractor(tmp_path / "data", 20).record.size == 20
        assert len(list(own_cache.iterdir())) == 6

    def test_a_damaged_file_is_made_anew(self, own_cache: Path, caplog):
        first = cached_extractor(few())
        (path,) = own_cache.iterdir()
        path.write_bytes(path.read_bytes()[:1000])
        assert cached_extractor(few()).name == first.name
        assert "It is trained anew" in caplog.text

    def test_training_on_purpose_replaces_it_and_tells_all(self, own_cache: Path, tmp_path: Path):
        for index in range(24):
            write(tmp_path / "data" / "ab"[index % 2] / f"{index}.png", index)
        first = cached_extractor(tmp_path / "data", 16)
        record = train_folder_extractor(tmp_path / "data", 16, seed=5, epochs=2)
        assert record["name"] != first.name
        assert cached_extractor(tmp_path / "data", 16).name == record["name"]
        assert Path(record["path"]).parent == own_cache
        assert (record["kind"], record["seed"], record["epochs"]) == ("classes", 5, 2)
        assert (record["pictures"], record["size"]) == (24, 16)
        assert set(record["validity"]) == {"blur", "noise", "drop"}
        assert isinstance(record["valid"], bool)
        assert record["groups"] == "1 of 2 classes"
        assert 0 <= record["accuracy"]["class"] <= 1
        assert record["seconds"] > 0

    def test_a_cache_that_cannot_be_written_is_no_obstacle(self, own_cache: Path, caplog):
        own_cache.parent.mkdir(parents=True)
        own_cache.write_text("a file where the folder should be")
        assert cached_extractor(few()).record.trained_on == "few60"
        assert "is not kept for the next run" in caplog.text


class TestLabels:
    def test_an_attribute_file_comes_first(self, tmp_path: Path):
        for index in range(10):
            write(tmp_path / "images" / f"{index}.png", index)
        rows = [f"{index}.png {1 if index % 2 else -1} -1" for index in range(10)]
        (tmp_path / "list_attr.txt").write_text("\n".join(["10", "Male Young", *rows]) + "\n")
        opened = open_labelled(tmp_path, 16)
        assert opened.names == ("Male", "Young")
        assert opened.images.labels is not None
        assert opened.images.labels.dtype == torch.float32
        assert opened.images.labels.shape == (len(opened.images), 2)
        assert opened.images.labels[:, 1].sum() == 0
        assert 0 < opened.images.labels[:, 0].sum() < len(opened.images)

    def test_two_domains_are_two_classes(self, tmp_path: Path):
        for index in range(5):
            write(tmp_path / f"train{'AABBB'[index]}" / f"{index}.png", index)
        write(tmp_path / "testA" / "x.png", 9)
        write(tmp_path / "testB" / "y.png", 8)
        opened = open_labelled(tmp_path, 20)
        assert opened.names == ("A", "B")
        assert opened.images.labels is not None
        assert opened.images.labels.tolist() == [0, 0, 1, 1, 1]
        expected = np.asarray(Image.open(tmp_path / "trainB" / "3.png")).transpose(2, 0, 1)
        assert np.array_equal(opened.images.pixels([3])[0].numpy(), expected)  # after 0, 1 and 2
        assert open_labelled(tmp_path, 20, "test").images.labels.tolist() == [0, 1]

    def test_halves_of_pairs_are_two_classes(self, tmp_path: Path):
        for index in range(4):
            write(tmp_path / "train" / f"{index}.png", index, (40, 20))
        write(tmp_path / "val" / "0.png", 9, (40, 20))
        opened = open_labelled(tmp_path, 20)
        assert opened.images.labels is not None
        assert opened.images.labels.tolist() == [0] * 4 + [1] * 4
        whole = np.asarray(Image.open(tmp_path / "train" / "1.png")).transpose(2, 0, 1)
        assert np.array_equal(opened.images.pixels([1])[0].numpy(), whole[:, :, :20])
        assert np.array_equal(opened.images.pixels([5])[0].numpy(), whole[:, :, 20:])
        assert len(open_labelled(tmp_path, 20, "test").images) == 2

    def test_subfolders_are_classes(self, tmp_path: Path):
        for index in range(6):
            write(tmp_path / ("cat", "dog", "newt")[index % 3] / "deep" / f"{index}.png", index)
        opened = open_labelled(tmp_path, 16)
        assert opened.names == ("cat", "dog", "newt")
        assert opened.images.labels is not None
        assert opened.images.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert opened.mirror

    @pytest.mark.parametrize("folders", [("train", "val"), ("Set5", "Set14"), ("only",), ("", "beside")])
    def test_other_folders_are_not(self, tmp_path: Path, folders: tuple[str, ...]):
        for index, folder in enumerate(folders):
            write(tmp_path / folder / f"{index}.png", index)
        opened = open_labelled(tmp_path, 16)
        assert opened.images.labels is None
        assert opened.names == ()

    def test_digits_have_their_classes_and_are_not_mirrored(self):
        opened = open_labelled("digits", 16)
        assert opened.images.channels == 3
        assert opened.names == tuple("0123456789")
        assert not opened.mirror
        assert holds_digits(None)
        assert holds_digits("digits")

    @pytest.mark.parametrize("name", ["coloured-digits", "red-blue-digits", "digit-outlines", "photos"])
    def test_the_sets_of_the_package_are_known(self, name: str):
        opened = open_labelled(name, 16)
        assert len(opened.images) > 100
        assert (opened.images.labels is None) == (name == "photos")
        assert opened.mirror == (name == "photos")
        assert not holds_digits(name)

    def test_a_missing_folder_is_explained(self, tmp_path: Path):
        with pytest.raises(UserError, match="does not exist"):
            open_labelled(tmp_path / "none", 16)
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="Expected pictures in .*empty, got none"):
            labelled_images(tmp_path / "empty", 16)


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "names"), [("monet2photo", ("A", "B")), ("sr", ())])
def test_real_folders_offer_their_labels(shared: Path, folder: str, names: tuple[str, ...]):
    opened = open_labelled(shared / "data" / folder, 16)
    assert opened.names == names
    assert (opened.images.labels is None) == (not names)
