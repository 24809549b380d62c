"""Everything that is measured of a generator by its task's test protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sgc_distiller.extractors import Extractor, GeneratorMetric
from sgc_distiller.metrics import MetricResult
from sgc_distiller.picture_quality import PictureQuality, mean_translation_distance
from sgc_distiller.tasks.evaluation import Drawn, Evaluation

__all__ = ["Measurement"]


class Measurement:
    """Distances of sets, qualities of pictures and attributes of translations.

    Args:
        evaluations: The comparisons of a test protocol. One with fewer than two real pictures has no distance
            of sets.
        extractor: Computes the features that the distances compare; one that was trained on the attributes
            of a folder also says which attributes a translation has.
        cache_dir: Where statistics of real pictures are kept between runs.
    """

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        extractor: Extractor,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.evaluations = list(evaluations)
        self.extractor = extractor
        self._metrics = [
            GeneratorMetric(extractor, item.reference, cache_dir) if len(item.reference) > 1 else None
            for item in evaluations
        ]

    def evaluate(
        self, generator: nn.Module, count: int, seed: int, device: torch.device
    ) -> list[MetricResult]:
        """Return all metrics of a generator.

        Args:
            generator: The generator; it is left as it was.
            count: Pictures that each evaluation draws at most.
            seed: Of noise, dropout and the intervals.
            device: Where the generator is.
        """
        results: list[MetricResult] = []
        for evaluation, metric in zip(self.evaluations, self._metrics, strict=True):
            tally = _Tally(evaluation, self.extractor)
            drawn = tally.listen(evaluation.draw(generator, count, seed, device))
            found = [] if metric is None else metric.evaluate(drawn, evaluation.protocol, seed)
            for _ in drawn:  # what no distance was computed of is compared one by one all the same
                pass
            found += tally.results()
            results += [_titled(item, evaluation.title) for item in found]
        return results


def _titled(result: MetricResult, title: str) -> MetricResult:
    """Return a metric whose name says which evaluation it belongs to: ``FID A to B[...]``."""
    if not title:
        return result
    name, bracket, protocol = result.name.partition("[")
    return dataclasses.replace(result, name=f"{name} {title}{bracket}{protocol}")


class _Tally:
    """Adds up what is known of drawn pictures one by one, while their features are computed."""

    def __init__(self, evaluation: Evaluation, extractor: Extractor) -> None:
        self.evaluation = evaluation
        self.classifier = extractor.classifier(evaluation.attributes) if evaluation.attributes else None
        self.quality = PictureQuality(evaluation.border, evaluation.reference.name)
        self.pairs = 0
        self.inputs = 0
        self.distance = 0.0
        self.right: Tensor | None = None
        self.pictures = 0
        self.sums: dict[str, float] = {}

    def listen(self, drawn: Iterator[Drawn]) -> Iterator[Tensor]:
        """Yield the pictures of what is drawn."""
        for item in drawn:
            for made, true in item.pairs:
                self.quality.update(made, true)
                self.pairs += 1
            if item.translations is not None:
                self._add_translations(item.translations, item.wanted)
            self.pictures += len(item.pictures)
            for name, values in item.values.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
            yield item.pictures

    def _add_translations(self, made: Tensor, wanted: Tensor | None) -> None:
        self.inputs += len(made)
        self.distance += float(mean_translation_distance(made)) * len(made)
        if self.classifier is None or wanted is None:
            return
        device = next(self.classifier.parameters()).device
        found = self.classifier.predict(made.flatten(0, 1).to(device)).cpu() > 0.5  # (inputs * T, attributes)
        right = found == (wanted.flatten(0, 1).cpu() > 0.5)
        total = right.reshape(wanted.shape).double().sum(0)  # (T, attributes)
        self.right = total if self.right is None else self.right + total

    def results(self) -> list[MetricResult]:
        """Return the metrics of what was heard."""
        results = self.quality.compute() if self.pairs else []
        if self.inputs:
            about = f"{self.evaluation.reference.name}; {self.inputs} inputs"
            distance = self.distance / self.inputs
            results.append(
                MetricResult(f"distance of translations[L1; {about}]", distance, higher_is_better=True)
            )
            results += self._accuracies(about)
        about = f"{self.evaluation.reference.name}; {self.pictures} images"
        results += [
            MetricResult(f"{name}[{about}]", total / self.pictures) for name, total in self.sums.items()
        ]
        return results

    def _accuracies(self, about: str) -> list[MetricResult]:
        if self.right is None or self.classifier is None:
            return []
        shares = self.right / self.inputs  # (T, attributes); translation t is about attribute t
        named = [("attribute accuracy", float(shares.mean()))]
        for index, name in enumerate(self.evaluation.attributes):
            named.append((f"accuracy of {name}", float(shares[index, index])))
        label = self.classifier.name
        return [
            MetricResult(f"{title}[{label}; {about}]", value, higher_is_better=True) for title, value in named
        ]
