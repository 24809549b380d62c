"""What is measured of a generator by its test protocol, put together from evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gans import GANS, make_batch, samples, supervise
from torch import Tensor, nn

from sgc_distiller.data import ImageSet
from sgc_distiller.errors import UserError
from sgc_distiller.feature_networks import Classifier, Extractor
from sgc_distiller.measuring import Measurement
from sgc_distiller.pictures import boxed
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet
from sgc_distiller.wording import short_name


class Means(Extractor):
    """Features of a picture: the means of its channels; it has an attribute if that mean is positive."""

    def __init__(self) -> None:
        super().__init__("means", 3)
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))

    def classifier(self, attributes: Any) -> Classifier:
        return Positive(attributes)


class Positive(Classifier):
    def __init__(self, attributes: Any) -> None:
        super().__init__("positive", attributes)
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def predict(self, pictures: Tensor) -> Tensor:
        return (pictures.mean((2, 3))[:, :2] > 0).float()


def reference(count: int = 12) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return ImageSet("set", pixels.to(torch.uint8), 12, 3)


def test_pairs_are_compared_one_by_one_and_titles_tell_evaluations_apart():
    true = torch.zeros(3, 16, 20)
    made = true + 2 * 10 / 255  # ten levels of 255 in every pixel

    def draw(*_: Any) -> Iterator[Drawn]:
        for seed in range(3):
            pictures = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            yield Drawn(pictures, pairs=[(made, true), (true, true)])

    evaluations = [Evaluation(reference(), draw, "so", title, border=2) for title in ("set5", "")]
    results = Measurement(evaluations, Means()).evaluate(nn.Identity(), 9, 0, torch.device("cpu"))
    names = [short_name({"name": result.name}) for result in results]
    metrics = ["FID", "KID", "PSNR RGB", "PSNR Y", "SSIM RGB", "SSIM Y"]
    titled = ["FID set5", "KID set5", "PSNR set5 RGB", "PSNR set5 Y", "SSIM set5 RGB", "SSIM set5 Y"]
    assert names == titled + metrics
    assert "6 images" in results[-1].name
    assert "border 2" in results[-1].name
    psnr = next(result for result in results if result.name.startswith("PSNR[RGB"))
    one = (
        10 * torch.log10(torch.tensor(255.0**2 / 100)).item()
    )  # of ten levels; equal pictures count one level
    best = 10 * torch.log10(torch.tensor(255.0**2 * 3 * 12 * 16)).item()
    assert psnr.value == pytest.approx((one + best) / 2, abs=1e-4)
    assert psnr.higher_is_better


def test_translations_tell_attributes_and_how_far_they_lie_apart():
    signs = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])  # translation t is bright in channel t
    made = signs.view(1, 2, 3, 1, 1).expand(4, 2, 3, 12, 12) * 0.5
    wanted = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(4, 1, 1)
    wanted[0, 1] = torch.tensor([0.0, 0.0])  # one of eight translations gets what it was not asked for

    def draw(*_: Any) -> Iterator[Drawn]:
        noise = torch.rand(4, 2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.01
        yield Drawn((made + noise).flatten(0, 1), translations=made, wanted=wanted)

    evaluation = Evaluation(reference(), draw, "so", attributes=("First", "Second"))
    results = Measurement([evaluation], Means()).evaluate(nn.Identity(), 8, 0, torch.device("cpu"))
    values = {result.name.partition("[")[0]: result.value for result in results}
    assert values["distance of translations"] == pytest.approx(2 / 3)  # two of three channels differ by 1
    assert values["attribute accuracy"] == pytest.approx(15 / 16)
    assert values["accuracy of First"] == 1.0
    assert values["accuracy of Second"] == 0.75


def test_a_box_is_marked_and_enlarged_beside_the_picture():
    picture = torch.linspace(-1, 1, 3 * 12 * 12).view(3, 12, 12)
    drawn = boxed(picture, 3)
    assert drawn.shape == (3, 12, 24)
    assert torch.equal(drawn[:, 0, 12:15], picture[:, 4, 4:5].expand(3, 3))  # a pixel of the box, three wide
    assert drawn[:, 4, 4].tolist() == [1, -1, -1]
    assert torch.equal(drawn[:, :4, :12], picture[:, :4])


@pytest.mark.parametrize("name", [name for name in GANS if name != "dcgan"])
def test_sheets_show_what_was_given_beside_what_was_made(name: str):
    task = GANS[name]()
    sheet = task.sheet(task.build("generator"), samples(task, "test"), 0, torch.device("cpu"))
    assert isinstance(sheet, Sheet)
    assert sheet.given is not None
    assert sheet.given.shape[0] == sheet.made.shape[0]
    assert sheet.columns == sheet.given.shape[1] + sheet.made.shape[1] == len(sheet.titles)


def test_terms_without_a_weight_or_of_another_shape_are_refused():
    task = GANS["dcgan"]()
    supervision = supervise(task, torch.device("cpu"))
    batch = make_batch(task, torch.device("cpu"))
    for terms, message in (
        ({"gne": torch.ones(3)}, "the generator's term 'gne' has no weight; expected one of gen"),
        (
            {"gen": torch.ones(())},
            r"the generator's term 'gen' has the shape \(\); expected one value a sample",
        ),
    ):
        task.generator_terms = lambda *_, terms=terms: terms  # type: ignore[method-assign]
        with pytest.raises(UserError, match=message):
            supervision.step(batch)


def test_what_a_task_does_not_say_is_asked_for_by_name():
    task = GANS["dcgan"]()
    with pytest.raises(UserError, match=r"cannot be measured or drawn: implement sample\("):
        next(GANTask.sample(task, nn.Identity(), 1, 0, torch.device("cpu")))
    with pytest.raises(
        UserError, match=r"implement evaluations\(data\), since its data are more than pictures"
    ):
        task.evaluations(samples(GANS["stargan"]()))
