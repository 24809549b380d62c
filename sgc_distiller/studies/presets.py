"""The studies: which experiments the paper's tables and figures consist of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.resources import find_schedule, shipped_schedules
from sgc_distiller.studies.experiments import Experiment, Setting

__all__ = ["DENSE", "Row", "dense", "granularity_rows", "pruning", "schedule_rows", "table1_rows"]

DENSE = "table1/a_none"
"""The schedule of every study's dense training."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a schedule, and at which learning rate.

    Attributes:
        key: What it is called on the command line and in tables.
        file: The schedule.
        lr_factor: Multiplies the learning rate; ``None`` where the study says which ones are tried.
    """

    key: str
    file: Path
    lr_factor: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense training itself."""
        return self.file == find_schedule(DENSE)


def table1_rows(wanted: Sequence[str] | None = None) -> list[Row]:
    """Return rows of Table 1 by their letters, all fourteen by default.

    Args:
        wanted: Letters such as ``b``; ``e'`` is the variant of (e) in ``e-prime_*.yaml``; ``variants`` adds
            them all. Anything longer is a schedule: a file, or a shipped one's name. ``NAME@5`` runs it at
            five times its learning rate.

    Raises:
        UserError: If there is no such row.
    """
    files = sorted((shipped_schedules() / "table1").glob("*.yaml"), key=_letter)
    shipped = {_letter(file): file for file in files}
    letters = [letter for letter in shipped if not letter.endswith("'")]
    if wanted is None:
        return [Row(letter, shipped[letter]) for letter in letters]
    rows: list[Row] = []
    for text in wanted:
        name, factor = _at_rate(text)
        if name == "variants":
            rows += [Row(letter, file, factor) for letter, file in shipped.items() if letter.endswith("'")]
        elif name in shipped:
            rows.append(Row(name, shipped[name], factor))
        elif len(name) <= 2:
            raise UserError(
                f"--rows: expected letters out of {', '.join(shipped)}, 'variants', or schedules, got "
                f"{name!r}.{nearest(name, shipped)}"
            )
        else:
            rows += schedule_rows([text])
    return list({(row.key, row.lr_factor): row for row in rows}.values())


def _letter(file: Path) -> str:
    return file.stem.partition("_")[0].replace("-prime", "'")


def schedule_rows(names: Iterable[str]) -> list[Row]:
    """Return rows of schedules: files, or shipped ones' names; ``NAME@5`` at five times its rate."""
    rated = [_at_rate(name) for name in names]
    files = [(find_schedule(name), factor) for name, factor in rated]
    stems = [file.stem for file in dict.fromkeys(file for file, _ in files)]
    return [
        Row(file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}", file, factor)
        for file, factor in files
    ]


def _at_rate(text: str) -> tuple[str, float | None]:
    """Split ``NAME@5`` into the name and the factor of the learning rate."""
    name, at, factor = text.rpartition("@")
    if not at:
        return text, None
    try:
        value = float(factor)
    except ValueError:
        return text, None  # a file's name may hold an @
    if not 0 < value < math.inf:
        raise UserError(f"{text}: expected a factor of the learning rate above 0 after @, got {factor}")
    return name, value


def granularity_rows() -> list[Row]:
    """Return the rows of the granularity study, from the finest to the coarsest."""
    return [
        Row(name, find_schedule(f"granularity/{name}")) for name in ("element", "vector", "kernel", "filter")
    ]


def dense(setting: Setting, seeds: Iterable[int]) -> list[Experiment]:
    """Return the dense training of each seed."""
    file = find_schedule(DENSE)
    return [Experiment(setting, "dense", "dense", file, seed, trains_dense=True) for seed in seeds]


def pruning(
    setting: Setting,
    rows: Iterable[Row],
    seeds: Iterable[int],
    sparsities: Sequence[float | None] = (None,),
    shares: Sequence[float] = (1.0,),
) -> list[Experiment]:
    """Return the pruning runs of rows, seeds outermost, so that a stopped study holds whole seeds.

    Args:
        setting: What they share.
        rows: The schedules; the dense training is left out.
        seeds: The seeds.
        sparsities: In (0, 1); ``None`` keeps a schedule's own.
        shares: Of the schedule's steps.
    """
    rows = [row for row in rows if not row.is_dense]
    return [
        Experiment(
            setting,
            _name(row, sparsity, share),
            row.key,
            row.file,
            seed,
            sparsity,
            lr_factor=1.0 if row.lr_factor is None else row.lr_factor,
            share=share,
        )
        for seed in seeds
        for sparsity in sparsities
        for share in shares
        for row in rows
    ]


def _name(row: Row, sparsity: float | None, share: float) -> str:
    """Return the name of a run, which no other setting of the same study has."""
    parts = [row.file.stem]
    if sparsity is not None:
        parts.append(f"at_{100 * sparsity:g}")
    if row.lr_factor not in (None, 1.0):
        parts.append(f"lr_x{row.lr_factor:g}")
    if share != 1.0:
        parts.append(f"steps_x{share:g}")
    return "_".join(parts)
