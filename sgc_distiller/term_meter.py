"""Loss terms added up on the device, with a watch for values that are not finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgc_distiller.errors import NotANumberError

__all__ = ["TermMeter"]

_NEVER = 2**62


@dataclass
class _Sums:
    """Running sums of one set of names, on the device, and the last step that added to them."""

    total: Tensor
    last: Tensor
    first_bad: Tensor
    last_step: int
    count: int = 0


class TermMeter:
    """Sums of named scalars, kept on the device, with a watch for values that are not finite.

    Nothing here waits for the device until `read` is called.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], _Sums] = {}
        self._first_step = 0

    def add(self, values: dict[str, Tensor], step: int) -> None:
        """Add the scalars of one step."""
        if not values:
            return
        if not self._sums:
            self._first_step = step
        row = torch.stack([value.detach() for value in values.values()])
        sums = self._sums.get(tuple(values))
        if sums is None:
            never = torch.full(row.shape, _NEVER, dtype=torch.int64, device=row.device)
            sums = _Sums(torch.zeros_like(row, dtype=torch.float64), row, never, step)
            self._sums[tuple(values)] = sums
        sums.last, sums.last_step = row, step
        sums.total += row
        sums.first_bad = torch.where(torch.isfinite(row), sums.first_bad, sums.first_bad.clamp(max=step))
        sums.count += 1

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return each name's last value and its mean since `reset`, over the steps that had it.

        Raises:
            NotANumberError: If any value was not finite.
        """
        last: dict[str, float] = {}
        total: dict[str, float] = {}
        count: dict[str, int] = {}
        bad: list[tuple[int, int, str]] = []
        for names, sums in sorted(self._sums.items(), key=lambda item: item[1].last_step):
            rows = torch.stack([sums.last.double(), sums.total, sums.first_bad.double()]).tolist()
            for place, (name, value, part, step) in enumerate(zip(names, *rows, strict=True)):
                last[name] = value
                total[name] = total.get(name, 0.0) + part
                count[name] = count.get(name, 0) + sums.count
                if step < _NEVER:
                    bad.append((int(step), place, name))
        if bad:
            self._refuse(bad)
        return last, {name: total[name] / count[name] for name in total}

    def _refuse(self, bad: list[tuple[int, int, str]]) -> None:
        step, _, name = min(bad)  # of one step the term that was computed first
        phase = "discriminator" if name.startswith("discriminator.") else "generator"
        until = max(sums.last_step for sums in self._sums.values())
        raise NotANumberError(
            f"{name} is not a finite number since step {step}, in the {phase} phase (steps "
            f"{self._first_step} to {until} were looked at; not finite: "
            f"{', '.join(sorted({term for *_, term in bad}))}). Nothing was saved after the last checkpoint: "
            "lower the learning rate, raise `epsilon` or take `normalizer: ema` in the schedule, and resume "
            "from that checkpoint"
        )

    def reset(self) -> None:
        """Forget all values."""
        self._sums = {}
