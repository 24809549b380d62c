"""Extractors and the metric of generators: shipped weights, sensible order, full names, cache, mistakes."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller import extractor_training, extractors, feature_networks
from sgc_distiller.data import ImageSet, normalise, open_images
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.extractor_validity import Validity
from sgc_distiller.extractors import GeneratorMetric, inception_path, load_extractor
from sgc_distiller.feature_networks import DIGITS_WEIGHTS
from sgc_distiller.metrics import FeatureStatistics, frechet_distance
from sgc_distiller.picture_network import PictureExtractor, save_picture_extractor

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def digits() -> ImageSet:
    return open_images("digits", 32, 1)


@pytest.fixture
def no_downloads(monkeypatch, tmp_path: Path) -> Path:
    """An empty cache of weights, and a test that fails when something is fetched."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return inception_path()


def all_of(images: ImageSet, count: int | None = None) -> Tensor:
    return normalise(images.pixels(range(count or len(images))))


class TestDigitsExtractor:
    def test_the_shipped_weights_have_the_recorded_accuracy(self, digits: ImageSet):
        recorded = torch.load(DIGITS_WEIGHTS, weights_only=True)
        network = load_extractor("digits").network
        held_out = range(1437, 1797)
        named = network(normalise(digits.pixels(held_out))).argmax(dim=1)
        assert digits.labels is not None
        accuracy = float((named == digits.labels[1437:]).double().mean())
        assert accuracy == pytest.approx(recorded["accuracy"], abs=1 / 360)
        assert accuracy > 0.97
        assert DIGITS_WEIGHTS.stat().st_size < 2**20

    def test_the_script_reproduces_the_accuracy(self, tmp_path: Path):
        recorded = torch.load(DIGITS_WEIGHTS, weights_only=True)
        script = REPOSITORY / "tools" / "train_digits_extractor.py"
        command = [sys.executable, str(script), "--output", str(tmp_path / "new.pt")]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found = re.search(r"accuracy on the held-out digits: (\d\.\d+)", printed)
        assert found is not None
        assert float(found.group(1)) == pytest.approx(recorded["accuracy"], abs=0.012)  # four pictures
        again = load_extractor("digits", tmp_path / "new.pt")
        assert again(torch.zeros(1, 1, 32, 32)).shape == (1, 64)

    def test_its_name_is_that_of_its_weights(self, tmp_path: Path):
        shipped = load_extractor("digits")
        assert re.fullmatch(r"digits-[0-9a-f]{8}", shipped.name)
        content = torch.load(DIGITS_WEIGHTS, weights_only=True)
        content["state_dict"]["scale"] *= 2
        torch.save(content, tmp_path / "other.pt")
        other = load_extractor("digits", tmp_path / "other.pt")
        assert re.fullmatch(r"digits-[0-9a-f]{8}", other.name)
        assert other.name != shipped.name
        pictures = torch.rand(3, 1, 32, 32) * 2 - 1
        torch.testing.assert_close(other(pictures), 2 * shipped(pictures))

    def test_the_total_variance_of_the_digits_is_a_hundred(self, digits: ImageSet, device: torch.device):
        features = load_extractor("digits", device=device)(all_of(digits).to(device))
        assert float(features.double().var(dim=0).sum()) == pytest.approx(100, rel=1e-3)

    def test_features_carry_no_gradient_and_do_not_depend_on_their_batch(self, device: torch.device):
        extractor = load_extractor("digits", device=device)
        pictures = torch.rand(6, 1, 64, 64, device=device, requires_grad=True)
        features = extractor(pictures)
        assert features.shape == (6, extractor.dim)
        assert features.dtype == torch.float32
        assert not features.requires_grad
        close = (
            1e-4 if device.type == "cpu" else 2e-2
        )  # cuDNN may round to TF32, and by the size of the batch
        torch.testing.assert_close(features[:2], extractor(pictures[:2]), atol=close, rtol=close)

    def test_grey_in_three_channels_is_the_same_picture(self):
        extractor = load_extractor("digits")
        pictures = torch.rand(4, 1, 32, 32) * 2 - 1
        torch.testing.assert_close(
            extractor(pictures), extractor(pictures.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
        )

    def test_pictures_count_as_their_files_would(self, tmp_path: Path):
        pictures = torch.randn(5, 1, 32, 32)  # beyond [-1, 1] too
        for index, picture in enumerate(pictures[:, 0]):
            levels = np.floor((picture.double().numpy() * 0.5 + 0.5) * 255 + 0.5).clip(
                0, 255
            )  # torchvision's
            Image.fromarray(levels.astype(np.uint8)).save(tmp_path / f"{index}.png")
        extractor = load_extractor("digits")
        saved = all_of(open_images(tmp_path, 32, 1))
        torch.testing.assert_close(extractor(pictures), extractor(saved), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 32, 32), (2, 2, 32, 32), (32,)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]):
        with pytest.raises(ValueError, match=r"Expected pictures \(B, 1 or 3, H, W\), got"):
            load_extractor("digits")(torch.zeros(shape))


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    distance = torch.arange(-8, 9, dtype=pictures.dtype, device=pictures.device)
    weights = (-(distance**2) / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    padded = F.pad(pictures, (8, 8, 8, 8), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def noisy(pictures: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(3)).to(pictures)
    return (pictures + deviation * noise).clamp(-1, 1)


@pytest.fixture(params=["digits", pytest.param("mnist", marks=pytest.mark.shared)])
def labelled(request: pytest.FixtureRequest) -> ImageSet:
    if request.param == "digits":
        return open_images("digits", 32, 1)
    return open_images(request.getfixturevalue("shared") / "data" / "mnist", 32, 1, "test", fraction=0.2)


class TestOrder:
    """The distance grows with what makes digits worse, and what is worse by far is far."""

    @pytest.fixture
    def distance(self, labelled: ImageSet, device: torch.device) -> Callable[[Tensor], float]:
        extractor = load_extractor("digits", device=device)

        def statistics(pictures: Tensor) -> tuple[Tensor, Tensor]:
            streamed = FeatureStatistics()
            for batch in pictures.to(device).split(500):
                streamed.update(extractor(batch))
            return streamed.compute()

        real = statistics(all_of(labelled))
        return lambda pictures: frechet_distance(*statistics(pictures), *real)

    @pytest.mark.parametrize(
        ("worsen", "amounts"), [(blurred, (0.5, 1, 1.5, 2, 3)), (noisy, (0.05, 0.1, 0.2, 0.4, 0.8))]
    )
    def test_blur_and_noise(self, labelled: ImageSet, distance, worsen, amounts: tuple[float, ...]):
        pictures = all_of(labelled)
        distances = [distance(pictures), *(distance(worsen(pictures, amount)) for amount in amounts)]
        assert all(low < high for low, high in zip(distances, distances[1:], strict=False)), distances
        assert distances[-1] > 10

    def test_missing_classes(self, labelled: ImageSet, distance):
        pictures, labels = all_of(labelled), labelled.labels
        assert labels is not None
        distances = [distance(pictures[labels < classes]) for classes in (10, 8, 5, 3, 1)]
        assert all(low < high for low, high in zip(distances, distances[1:], strict=False)), distances
        half = distance(pictures[torch.randperm(len(pictures))[: len(pictures) // 2]])
        assert distances[2] > 10 * half, "half of the classes is far from half of the pictures"

    def test_what_is_no_digit_is_far(self, labelled: ImageSet, distance):
        pictures = all_of(labelled)
        for wrong in (torch.rand_like(pictures) * 2 - 1, torch.full_like(pictures, -1), -pictures):
            assert distance(wrong) > 50


class TestGeneratorMetric:
    def test_names_carry_the_protocol(self, digits: ImageSet, device: torch.device):
        extractor = load_extractor("digits", device=device)
        pictures = all_of(digits, 300)
        fid, kid = GeneratorMetric(extractor, digits).evaluate(pictures.split(64), "train mode, batch 64")
        about = f"{extractor.name}; reference digits-all1797 32x32; 300 images, train mode, batch 64"
        assert fid.name == f"FID[{about}]"
        assert kid.name == f"KID[{about}]"
        assert fid.low is fid.high is None
        assert kid.low is not None
        assert kid.high is not None
        assert kid.low < kid.value < kid.high
        assert not fid.higher_is_better

    def test_the_reference_itself_is_near_and_noise_is_far(self, digits: ImageSet, device: torch.device):
        metric = GeneratorMetric(load_extractor("digits", device=device), digits)
        pictures = all_of(digits)
        same_fid, same_kid = metric.evaluate(pictures.split(100), "real")
        wrong_fid, wrong_kid = metric.evaluate(torch.rand_like(pictures).split(100), "noise")
        assert same_fid.value == pytest.approx(0, abs=1e-3)
        assert wrong_fid.value > 50
        assert same_kid.value < 0.1 < wrong_kid.value

    def test_values_do_not_depend_on_batches_or_calls(self, digits: ImageSet):
        metric = GeneratorMetric(load_extractor("digits"), digits)
        pictures = noisy(all_of(digits, 200), 0.3)
        first = [item.value for item in metric.evaluate(pictures.split(200), "x", seed=1)]
        again = [item.value for item in metric.evaluate(iter(pictures.split(33)), "x", seed=1)]
        assert first == pytest.approx(again, rel=1e-4)

    def test_statistics_are_cached_per_content(self, digits: ImageSet, tmp_path: Path, monkeypatch):
        extractor, pictures = load_extractor("digits"), all_of(digits, 100)
        computed = []
        original = GeneratorMetric._compute_reference
        monkeypatch.setattr(
            GeneratorMetric, "_compute_reference", lambda self: (computed.append(1), original(self))[1]
        )
        first = GeneratorMetric(extractor, digits, tmp_path / "cache").evaluate([pictures], "x")
        assert GeneratorMetric(extractor, digits, tmp_path / "cache").evaluate([pictures], "x") == first
        assert len(computed) == 1
        assert len(list((tmp_path / "cache").iterdir())) == 1
        half = open_images("digits", 32, 1, fraction=0.5)
        GeneratorMetric(extractor, half, tmp_path / "cache").evaluate([pictures], "x")
        assert len(computed) == 2
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_pytorch_fid_reads_the_cache(self, digits: ImageSet, tmp_path: Path):
        fid_score = pytest.importorskip("pytorch_fid.fid_score")
        extractor = load_extractor("digits")
        GeneratorMetric(extractor, digits, tmp_path).evaluate([all_of(digits, 10)], "x")
        (path,) = tmp_path.iterdir()
        mu, sigma = fid_score.compute_statistics_of_path(str(path), None, 1, 64, "cpu")
        features = extractor(all_of(digits)).double().numpy()
        np.testing.assert_allclose(mu, features.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(sigma, np.cov(features, rowvar=False), atol=1e-4)

    def test_a_damaged_cache_is_computed_anew(self, digits: ImageSet, tmp_path: Path, caplog):
        extractor, pictures = load_extractor("digits"), all_of(digits, 100)
        first = GeneratorMetric(extractor, digits, tmp_path).evaluate([pictures], "x")
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:1000])
        with caplog.at_level(logging.WARNING):
            assert GeneratorMetric(extractor, digits, tmp_path).evaluate([pictures], "x") == first
        assert "It is computed anew" in caplog.text
        caplog.clear()
        assert GeneratorMetric(extractor, digits, tmp_path).evaluate([pictures], "x") == first
        assert not caplog.text

    def test_the_kernel_distance_of_many_takes_some_and_says_so(self, digits: ImageSet, monkeypatch):
        monkeypatch.setattr(extractors, "_KERNEL_PICTURES", 50)
        metric = GeneratorMetric(load_extractor("digits"), digits)
        fid, kid = metric.evaluate(all_of(digits, 100).split(40), "x")
        assert "reference digits-all1797 32x32; 100 images" in fid.name
        assert "reference digits-all1797 32x32, 50 of them; 50 images" in kid.name

    def test_pictures_of_other_sizes_are_resized_by_the_extractor_and_the_names_say_so(
        self, digits: ImageSet
    ):
        extractor = load_extractor("digits")
        metric = GeneratorMetric(extractor, digits)
        large = F.interpolate(all_of(digits, 60), size=(48, 40), mode="bilinear")
        fid, kid = metric.evaluate(large.split(25), "x")
        about = f"{extractor.name}; reference digits-all1797 32x32; 60 images, x"
        assert fid.name == f"FID[{about}, 48x40 resized by the extractor]"
        assert kid.name == f"KID[{about}, 48x40 resized by the extractor]"
        features = [item.double().numpy() for item in (extractor(large), extractor(all_of(digits)))]
        moments = [
            item for one in features for item in (one.mean(axis=0), np.cov(one, rowvar=False))
        ]  # the reference is as large as ever
        assert fid.value == pytest.approx(frechet_distance(*moments), rel=1e-3)

    def test_lists_of_pictures_of_several_sizes_are_measured(self, digits: ImageSet):
        metric = GeneratorMetric(load_extractor("digits"), digits)
        pictures = all_of(digits, 60)
        usual = metric.evaluate([pictures], "x")
        listed = metric.evaluate([list(pictures[:20]), pictures[20:59], pictures[59]], "x")
        assert [item.name for item in listed] == [item.name for item in usual]
        assert [item.value for item in listed] == pytest.approx([item.value for item in usual], rel=1e-4)
        mixed = [F.interpolate(item[None], scale_factor=1 + i % 3)[0] for i, item in enumerate(pictures)]
        fid, kid = metric.evaluate([mixed[:30], mixed[30:]], "x")
        assert fid.name.endswith("60 images, x, of several sizes, resized by the extractor]")
        assert kid.name.endswith("60 images, x, of several sizes, resized by the extractor]")
        assert fid.value == pytest.approx(usual[0].value, rel=0.2)

    def test_mistakes_are_explained(self, digits: ImageSet):
        metric = GeneratorMetric(load_extractor("digits"), digits)
        with pytest.raises(ValueError, match=r"Expected pictures \(B, 1 or 3, H, W\), got \(2, 2, 64, 64\)"):
            metric.evaluate([torch.zeros(2, 2, 64, 64)], "x")
        with pytest.raises(UserError, match="at least 2 pictures for their statistics, got 1"):
            metric.evaluate([torch.zeros(1, 1, 32, 32)], "x")
        with pytest.raises(UserError, match="at least 2 pictures for their statistics, got 0"):
            metric.evaluate([], "x")
        with pytest.raises(NotANumberError, match="not finite numbers"):
            metric.evaluate([torch.full((4, 1, 32, 32), float("nan"))], "x")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder of 24 pictures in two classes, an empty cache, and training that takes a moment."""
    monkeypatch.setattr(extractor_training, "_EPOCHS", (1, 1))
    monkeypatch.setenv("SGC_CACHE", str(tmp_path / "cache"))
    for index in range(24):
        place = tmp_path / "pictures" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(index).randint(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path / "pictures"


class TestFolder:
    def test_auto_trains_one_for_a_folder_and_says_so(self, no_downloads: Path, folder: Path):
        extractor = load_extractor("auto", source=folder, image_size=16)
        assert re.fullmatch(r"cnn-[0-9a-f]{8}", extractor.name)
        assert f"The Inception weights are not at {no_downloads}" in extractor.note
        assert f"{extractor.name}, trained on the classes of folder:pictures-train24" in extractor.note
        assert f"'sgc extractor train {folder}' makes it beforehand" in extractor.note
        assert extractors.INCEPTION_URL in extractor.note
        assert load_extractor("folder", source=folder, image_size=16).name == extractor.name
        assert "Inception" not in load_extractor("folder", source=folder, image_size=16).note

    def test_the_note_says_whether_it_is_valid(self, folder: Path):
        extractor = load_extractor("folder", source=folder, image_size=16)
        assert isinstance(extractor, PictureExtractor)
        rising = ((1.0, 1.0), (2.0, 2.0), (3.0, 3.0))
        for drop, words in (
            (rising, "it is valid: distances rise with blur, noise and missing pictures"),
            (rising[::-1], "it is not valid, distances do not rise steadily with drop: mistrust their order"),
        ):
            validity = Validity("classes", {"blur": rising, "noise": rising, "drop": drop})
            extractor.record = replace(extractor.record, validity=validity)
            save_picture_extractor(extractor, folder.parent / "x.pt")
            assert words in load_extractor("folder", folder.parent / "x.pt").note
        extractor.record = replace(extractor.record, validity=None)
        save_picture_extractor(extractor, folder.parent / "x.pt")
        assert "whether it is valid was not tried" in load_extractor("folder", folder.parent / "x.pt").note

    def test_its_file_can_be_named(self, no_downloads: Path, folder: Path):
        record = extractor_training.train_folder_extractor(folder, 16)
        for name in ("auto", "folder"):
            assert load_extractor(name, record["path"]).name == record["name"]

    def test_an_open_set_is_a_source(self, folder: Path):
        images = open_images(folder, 16, 3)
        extractor = load_extractor("folder", source=images)
        assert "trained on the rotations of folder:pictures-24" in extractor.note
        assert "sgc extractor train" not in extractor.note

    def test_digits_have_the_shipped_one(self, no_downloads: Path, folder: Path):
        (folder / "train-images-idx3-ubyte").write_bytes(b"")
        for source in (None, "digits", folder):
            assert load_extractor("auto", source=source).name == load_extractor("digits").name

    def test_pictures_are_measured_with_it(self, folder: Path, device: torch.device):
        images = open_images(folder, 16, 3)
        extractor = load_extractor("folder", source=folder, image_size=16, device=device)
        fid, kid = GeneratorMetric(extractor, images).evaluate([all_of(images)], "real")
        assert fid.name == f"FID[{extractor.name}; reference folder:pictures-24 16x16; 24 images, real]"
        assert fid.value == pytest.approx(0, abs=1e-3)
        assert kid.value < 1

    def test_without_a_source_there_is_nothing_to_learn(self):
        with pytest.raises(UserError, match="Expected a folder of pictures for the extractor 'folder', got"):
            load_extractor("folder")
        with pytest.raises(UserError, match=r"Cannot read the weights of a trained extractor at .*none\.pt"):
            load_extractor("folder", "none.pt")


class TestChoice:
    def test_auto_without_inception_is_digits_and_says_so(self, no_downloads: Path):
        extractor = load_extractor("auto")
        assert extractor.name == load_extractor("digits").name
        assert str(no_downloads) in extractor.note
        assert extractor.name in extractor.note
        assert extractors.INCEPTION_URL in extractor.note
        assert "'inception'" in extractor.note
        assert load_extractor("digits").note == ""

    @pytest.mark.parametrize("name", ["auto", "inception", "digits"])
    def test_a_path_that_is_missing_is_an_error(self, no_downloads: Path, tmp_path: Path, name: str):
        with pytest.raises(UserError, match=r"Cannot read the weights of .*missing\.pth.* existing file, or"):
            load_extractor(name, tmp_path / "missing.pth")

    @pytest.mark.parametrize("content", [b"", b"<html>", DIGITS_WEIGHTS.read_bytes()])
    def test_other_weights_are_refused(self, tmp_path: Path, content: bytes):
        path = tmp_path / "wrong.pth"
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"Expected the weights of pytorch-fid's Inception in .*wrong\.pth: "
        ):
            load_extractor("inception", path)
        if content != DIGITS_WEIGHTS.read_bytes():
            with pytest.raises(
                UserError, match=r"Expected the weights of the digits extractor in .*wrong\.pth: "
            ):
                load_extractor("digits", path)

    @pytest.mark.parametrize(
        "error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), OSError("disk full")]
    )
    def test_a_failed_download_says_what_to_do(self, no_downloads: Path, monkeypatch, error: Exception):
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        with pytest.raises(UserError, match="Cannot download the Inception weights: .*put it at .*'digits'"):
            load_extractor("inception")

    def test_a_download_is_checked_by_its_hash(self, no_downloads: Path, monkeypatch):
        asked = {}

        def download(url: str, target: str, **options: object) -> None:
            asked.update(options, url=url, target=target)
            raise OSError("enough seen")

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        with pytest.raises(UserError, match="enough seen"):
            load_extractor("inception")
        assert asked["target"] == str(no_downloads)
        assert asked["hash_prefix"] == "6726825d"

    def test_an_unknown_name_shows_the_nearest(self):
        with pytest.raises(
            UserError, match="out of auto, digits, folder, inception, got 'digit'. Did you mean 'digits'"
        ):
            load_extractor("digit")


class TestInception:
    @pytest.fixture
    def network(self) -> nn.Module:
        """Torchvision's network with pytorch-fid's blocks in place, with random weights."""
        from pytorch_fid import inception as fid
        from torchvision.models import Inception3

        torch.manual_seed(0)
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        blocks = {
            "Mixed_5b": fid.FIDInceptionA(192, pool_features=32),
            "Mixed_5c": fid.FIDInceptionA(256, pool_features=64),
            "Mixed_5d": fid.FIDInceptionA(288, pool_features=64),
            **{
                f"Mixed_6{key}": fid.FIDInceptionC(768, size)
                for key, size in zip("bcde", (128, 160, 160, 192), strict=True)
            },
            "Mixed_7b": fid.FIDInceptionE_1(1280),
            "Mixed_7c": fid.FIDInceptionE_2(2048),
        }
        for name, block in blocks.items():
            setattr(network, name, block)
        return network.eval()

    def test_it_computes_pytorch_fids_features_from_a_file(
        self, network: nn.Module, tmp_path: Path, monkeypatch, no_downloads: Path, device: torch.device
    ):
        path = tmp_path / "weights.pth"
        torch.save(network.state_dict(), path)
        extractor = load_extractor("auto", path, device)
        assert re.fullmatch(r"inception-[0-9a-f]{8}", extractor.name)
        assert extractor.dim == 2048
        assert extractor.note == ""
        grey = torch.randint(0, 256, (3, 1, 32, 32)) / 127.5 - 1
        features = extractor(grey.to(device)).cpu()
        # the same without pytorch-fid's wrapper: 299x299, in [-1, 1], pooled before the classifier
        network.fc = nn.Identity()
        enlarged = F.interpolate(grey.expand(-1, 3, -1, -1), size=(299, 299), mode="bilinear")
        with torch.no_grad():
            expected = network(enlarged)
        assert features.shape == (3, 2048)
        assert float(expected.std()) > 0
        close = 1e-3 if device.type == "cpu" else 2e-2  # cuDNN may round to TF32
        torch.testing.assert_close(features, expected, rtol=close, atol=close * float(expected.abs().max()))
        # the file with the known hash at the known place is the one that is called inception
        monkeypatch.setattr(feature_networks, "_INCEPTION_HASH", extractor.name.removeprefix("inception-"))
        no_downloads.parent.mkdir(parents=True)
        path.rename(no_downloads)
        assert load_extractor("auto").name == load_extractor("inception").name == "inception"
