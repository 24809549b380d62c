"""Numbers as a person reads them, the same in tables of the terminal and on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "MISSING",
    "bars",
    "count",
    "duration",
    "higher_is_better",
    "interval",
    "metrics_by_name",
    "number",
    "percent",
    "ratio",
    "share",
    "short_name",
]

MISSING = "–"
"""Stands where there is no value."""


def number(value: float | None) -> str:
    """Return a measured value with about four digits; ``None`` means that it was not finite."""
    if value is None:
        return "not a number"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}" if size >= 0.001 or value == 0 else f"{value:.1e}"


def percent(share: float) -> str:
    """Return a share in [0, 1] in percent; what is nearly all or nearly nothing is not rounded to it."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    if text == "100" and share < 1:
        text = "over 99.99"
    if text == "0" and share > 0:
        text = "under 0.01"
    return f"{text} %"


def share(value: float | None, unknown: str = MISSING) -> str:
    """Return a share in [0, 1] in percent, ``unknown`` for None."""
    return unknown if value is None else percent(value)


def count(value: float) -> str:
    """Return a whole number with separators of thousands."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: ``48.2 s``, ``4 min 32 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short_name(metric: Mapping[str, Any]) -> str:
    """Return a metric's name without its protocol: ``FID`` of ``FID[inception; 2000 images]``.

    What tells two metrics of one name apart stays: ``PSNR Y`` of ``PSNR[Y; border 4; ...]``.
    """
    name, _, protocol = str(metric["name"]).partition("[")
    channel = protocol.partition(";")[0]
    return f"{name.strip()} {channel}" if channel in ("RGB", "Y") else name.strip()


def higher_is_better(metric: Mapping[str, Any]) -> bool:
    """Return whether a larger value is the better one; what does not say so is a distance."""
    return bool(metric.get("higher_is_better", False))


def metrics_by_name(record: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of a record by their full names; none of none."""
    return {metric["name"]: metric for metric in (record or {}).get("metrics", [])}


def interval(metric: Mapping[str, Any]) -> str:
    """Return a metric's interval as ``low to high``, or an empty string if it has none."""
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""  # of a handful of pictures there is none
    return f"{number(low)} to {number(high)}"


def bars(shares: Sequence[float]) -> str:
    """Return a bar of text for each share in [0, 1], eight heights and none."""
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, math.ceil(8 * share))] for share in shares)


def ratio(metric: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> str:
    """Return how many times the reference's value a metric has, or an empty string where that says nothing.

    It says nothing if one is missing, the names differ, or the reference's own interval reaches zero (that
    of an unbiased kernel distance often does).
    """
    if metric is None or reference is None or metric["name"] != reference["name"]:
        return ""
    value, of = metric["value"], reference["value"]
    low = reference.get("low")
    if value is None or of is None or of <= 0 or (low is not None and low <= 0):
        return ""
    return f"× {value / of:.2f}" if value < 100 * of else f"× {value / of:,.0f}"
