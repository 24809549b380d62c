"""What was exported, as tables for a terminal."""

from __future__ import annotations

from typing import Any

from sgc_distiller.studies.tables import Table
from sgc_distiller.wording import MISSING, count, percent

__all__ = ["exported_tables"]

Record = dict[str, Any]


def exported_tables(record: Record) -> list[Table]:
    """Return tables of the files, of the weights' sizes and of the layers that have the 2:4 pattern.

    Args:
        record: What `sgc_distiller.export.export` returned.
    """
    tables = [_files(record), _sizes(record), _patterns(record)]
    return [table for table in tables if table.rows]


def _files(record: Record) -> Table:
    rows: list[tuple[str, ...]] = [
        (item["file"], item["format"], count(item["bytes"]), _checks(item["checks"]))
        for item in record["files"]
    ]
    return Table("Files", ("file", "format", "bytes", "checked"), rows)


def _checks(checks: Record) -> str:
    words = [checks["read_back"]] if "read_back" in checks else []
    if "largest_difference" in checks:
        words.append(f"largest difference {checks['largest_difference']:.1e}")
    return ", ".join(words)


def _sizes(record: Record) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in record["parts"]:
        sizes = part.get("weight_bytes")
        if sizes:
            kept = (percent(part["sparsity"]), *(count(size) for size in sizes.values()))
            rows.append((part["name"], *kept, f"{sizes['dense'] / sizes['compact']:.1f}"))
    heads = ("network", "sparsity", "dense", "dense, gzip", "compact", "compact, gzip", "dense / compact")
    return Table("Bytes of the weights", heads, rows)


def _patterns(record: Record) -> Table:
    layers = [(part, layer) for part in record["parts"] for layer in part["pattern_2_4"]]
    rows: list[tuple[str, ...]] = [
        (
            f"{part['prefix']}{layer['name']}",
            layer["kind"],
            "yes" if layer["holds"] else "no",
            layer["reason"] or MISSING,
        )
        for part, layer in layers
    ]
    held = sum(layer["holds"] for _, layer in layers)
    note = f"{held} of {len(layers)} layers can run on 2:4 sparse kernels"
    return Table("2:4 along the inputs", ("weight", "layer", "2:4", "why not"), rows, [note])
