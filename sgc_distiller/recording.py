"""Writes what a training run does into its folder: records, pictures, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgc_distiller import checkpoints, pictures, wording
from sgc_distiller.masks import sparsity_table
from sgc_distiller.metrics import MetricResult
from sgc_distiller.module_state import unwrapped
from sgc_distiller.runs import RunFolder
from sgc_distiller.tasks.evaluation import Sheet
from sgc_distiller.training import StepReport, Trainer

__all__ = ["Console", "Recorder", "generator_sparsity"]

log = logging.getLogger(__name__)

Record = dict[str, Any]
_STRIP = 16  # pictures side by side, after each epoch and at the end
Evaluate = Callable[[torch.nn.Module], list[MetricResult]]


class Console:
    """Where a person follows a run. This one keeps quiet; the command line's prints."""

    def note(self, text: str, once: bool = False) -> None:
        """Say one thing that matters; with ``once`` only if it was not said before."""

    def start(self, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        """Hear that training begins."""

    def step(self, report: StepReport) -> None:
        """Hear of progress within an epoch."""

    def epoch(self, record: Record) -> None:
        """Hear the numbers of a finished epoch."""

    def layers(self, title: str, rows: list[Record]) -> None:
        """Hear the sparsity of every layer."""

    def finish(self) -> None:
        """Hear that training is over."""


def generator_sparsity(rows: list[Record], names: set[str]) -> float:
    """Return the share of zeros in the named weights, in [0, 1]; 0 for none."""
    chosen = [row for row in rows if row["name"] in names]
    dense = sum(row["dense"] for row in chosen)
    return 1.0 - sum(row["nonzero"] for row in chosen) / dense if dense else 0.0


@dataclass
class Recorder:
    """The `Observer` of the command line's runs.

    Attributes:
        folder: Where to write.
        console: Told of everything.
        evaluate: Measures a generator on few pictures, for the table of epochs; ``None`` for no metric.
        prunable: Names of the convolutions', transposed convolutions' and linear layers' weights.
        plan: For each epoch, the sparsity that the schedule asks of each weight; None where only the run
            tells.
        overall: The same of all prunable weights together.
        state: Returns what a checkpoint holds beside the networks: configuration, teacher's hash, ...
        sheet: Returns pictures of a generator to look at, on the CPU, the same inputs every time.
        columns: Titles of the columns of those pictures, known at the end.
        best_count: How many best epochs to name.
        masks_sparsity: Whether to show every mask's sparsity after an epoch.
        param_hist: Whether to write histograms of the weights for TensorBoard.
    """

    folder: RunFolder
    console: Console
    evaluate: Evaluate | None
    prunable: set[str]
    plan: list[dict[str, float | None]]
    overall: list[float | None]
    state: Callable[[Trainer], Record]
    sheet: Callable[[torch.nn.Module], Sheet]
    best_count: int = 1
    masks_sparsity: bool = False
    param_hist: bool = False
    scores: list[Record] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def on_step(self, report: StepReport) -> None:
        """Record a step's loss terms."""
        self.folder.log(
            {
                "kind": "step",
                "epoch": report.epoch,
                "step": report.step,
                "terms": report.terms,
                "lr": report.lr,
                "seconds": report.seconds,
            }
        )
        self.console.step(report)

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        """Measure the generator, draw its pictures and record both."""
        generator = trainer.supervision.generator
        rows = self.layer_rows(generator, report.epoch)
        results = self.evaluate(generator) if self.evaluate else []
        record = {
            "kind": "epoch",
            "epoch": report.epoch,
            "step": report.step,
            "sparsity_asked": self.asked(report.epoch),
            "sparsity": generator_sparsity(rows, self.prunable),
            "terms": report.means,
            "lr": report.lr,
            "metrics": [metric_record(result) for result in results],
            "seconds": report.seconds,
        }
        self.folder.log(record)
        self.folder.log({"kind": "layers", "step": report.step, "layers": rows})
        if self.param_hist:
            self.folder.histograms(dict(unwrapped(generator).named_parameters()), report.step)
        _save_strip(self.sheet(generator), self.folder.epoch_sample(report.epoch))
        self.console.epoch(record)
        if self.masks_sparsity:
            self.console.layers(f"Masks after epoch {report.epoch} (last: {trainer.epochs - 1})", rows)
        if results:
            self._score(record)
            first = results[0]
            return {"max" if first.higher_is_better else "min": first.value}
        return {"min": report.means["generator.loss"]} if trainer.trains_generator else {}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        """Write the checkpoint, and the best one if this epoch is the best so far.

        The best one goes first: a run that is stopped between the two repeats the epoch and writes both.
        """
        content = self.checkpoint(trainer)
        if self.scores and self.scores[0]["epoch"] == report.epoch:
            checkpoints.save_checkpoint(self.folder.best_file, content)
        checkpoints.save_checkpoint(self.folder.checkpoint_file, content)

    def on_pruned(self, trainer: Trainer) -> None:
        """Record the layers of a generator that was pruned without training."""
        rows = self.layer_rows(trainer.supervision.generator, trainer.epochs - 1)
        self.folder.log({"kind": "layers", "step": trainer.step, "layers": rows})

    def on_end(self, trainer: Trainer) -> None:
        """Draw the finished generator, beside the dense one where there is one."""
        generator, teacher = trainer.supervision.generator, trainer.supervision.teacher
        sheet = self.sheet(generator)
        samples = self.folder.samples
        _save_strip(sheet, samples / "strip.png")
        self.columns = list(sheet.titles)
        if teacher is not None:
            dense, sparse = (item.made.flatten(0, 1) for item in (self.sheet(teacher), sheet))
            pictures.save_comparison(dense, sparse, samples, sheet.made.shape[1], sheet.given)
        else:
            pictures.save_grid(sheet.rows.flatten(0, 1), samples / "dense.png", sheet.columns)

    def checkpoint(self, trainer: Trainer) -> Record:
        """Return everything that a resumed run needs, under Distiller's keys and ours.

        ``state_dict`` is the generator as it draws, masks applied. Where they are applied on the forward pass
        only, ``dense_weights`` holds the weights beneath, which training goes on with.
        """
        supervision, scheduler = trainer.supervision, trainer.scheduler
        kept = _copy(supervision.generator)
        with trainer.weights_as_seen(trainer.epoch - 1):
            seen = _copy(supervision.generator)
        return {
            "epoch": trainer.epoch - 1,
            "arch": trainer.task.name,
            "state_dict": seen,
            "dense_weights": {n: value for n, value in kept.items() if not torch.equal(value, seen[n])},
            "optimizer_state_dict": trainer.generator_optimizer.state_dict(),
            "compression_sched": scheduler.state_dict() if scheduler else None,  # type: ignore[attr-defined]
            "extras": {"scores": self.scores},
            "step": trainer.step,
            "discriminator_state_dict": supervision.discriminator.state_dict(),
            "discriminator_optimizer_state_dict": trainer.discriminator_optimizer.state_dict(),
            "pools": {name: pool.state_dict() for name, pool in supervision.pools.items()},
            **self.state(trainer),
        }

    def best_epochs(self) -> str:
        """Return which epochs were the best, for a person; an empty string if none was measured."""
        if not self.scores:
            return ""
        named = wording.short_name(self.scores[0]["metrics"][0])
        values = [
            f"{score['epoch']} ({wording.number(score['metrics'][0]['value'])})" for score in self.scores
        ]
        at = " at the final sparsity" if self.plan and None not in self.plan[-1].values() else ""
        return f"best epoch{'s' if len(values) > 1 else ''}{at} by {named}: {', '.join(values)}"

    def layer_rows(self, generator: torch.nn.Module, epoch: int) -> list[Record]:
        """Return the sparsity of every weight, asked and reached."""
        asked = self.plan[min(epoch, len(self.plan) - 1)] if self.plan else {}
        return [{**row, "asked": asked.get(row["name"], 0.0)} for row in sparsity_table(generator)]

    def asked(self, epoch: int) -> float | None:
        """Return the sparsity asked of all prunable weights together, in [0, 1]; None if the run tells."""
        return self.overall[min(epoch, len(self.overall) - 1)] if self.overall else 0.0

    def _score(self, record: Record) -> None:
        """Rank epochs by the first metric, only those at the final sparsity, so that dense ones never win."""
        final = self.plan[-1] if self.plan else {}
        if self.plan and self.plan[min(record["epoch"], len(self.plan) - 1)] != final:
            return
        self.scores.append(
            {"epoch": record["epoch"], "sparsity": record["sparsity"], "metrics": record["metrics"]}
        )
        self.scores.sort(key=_rank)
        del self.scores[max(self.best_count, 1) :]


def _save_strip(sheet: Sheet, path: Path) -> None:
    """Write the first whole rows of a sheet as one row of at most `_STRIP` pictures, or its first row."""
    first = sheet.rows[: max(1, _STRIP // sheet.columns)].flatten(0, 1)
    pictures.save_grid(first, path, len(first))


def _copy(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _rank(score: Record) -> tuple[float, int]:
    """Return a key that sorts the best epoch first, of equal ones the earlier."""
    first = score["metrics"][0]
    return (-first["value"] if wording.higher_is_better(first) else first["value"], score["epoch"])


def metric_record(result: MetricResult) -> Record:
    """Return a metric as it is written into records."""
    return dataclasses.asdict(result)
