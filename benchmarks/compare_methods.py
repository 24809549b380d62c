"""Compare pruning methods on one data set: seeds x sparsities x methods, at equal steps.

Trains a dense DCGAN a seed, prunes its generator by every method's shipped schedule, and measures all of them
against the test pictures. Runs that have finished are not repeated, interrupted ones are resumed, so the same
command continues where it stopped::

    python benchmarks/compare_methods.py --data DIR --out runs/mnist --seeds 3 --jobs 2

Prints a Markdown table and writes it with every single number to ``--results`` (JSON).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = {
    "recommended": "supervised, recommended",
    "paper": "supervised, as in the paper",
    "paper_output_dense": "supervised, as in the paper, output layer dense",
    "distillation": "distillation of pixels",
    "agp": "AGP + adversarial fine-tuning",
    "oneshot": "one-shot + adversarial fine-tuning",
}


@dataclass(frozen=True)
class Job:
    """One run: a schedule's name, or ``dense``, and a seed; ``lr`` replaces the schedule's."""

    name: str
    seed: int
    steps_per_epoch: int
    lr: float | None = None

    def folder(self, root: Path) -> Path:
        """Return the run's folder."""
        steps = "" if self.name == "dense" else f"_{self.steps_per_epoch}"
        lr = f"_lr{self.lr:g}" if self.lr else ""
        return root / f"seed{self.seed}" / f"{self.name}{steps}{lr}"


def command(job: Job, root: Path, options: argparse.Namespace) -> list[str]:
    """Return the command line of a job, which goes on with what is there."""
    folder = job.folder(root)
    start = [
        sys.executable,
        "-m",
        "sgc_distiller.app",
        "train" if job.name == "dense" else "compress",
        "dcgan",
    ]
    if (folder / "checkpoint.pth.tar").is_file():
        return [*start, "--resume-from", str(folder)]
    new = ["-o", str(folder.parent), "-n", folder.name, "--seed", str(job.seed), "--epoch-images", "0"]
    new += ["--test-images", str(options.test_images)]
    if job.name == "dense":
        sizes = [
            "--image-size",
            str(options.image_size),
            "--width",
            str(options.width),
            "--data",
            options.data,
        ]
        epochs = options.dense_steps // job.steps_per_epoch
        return [*start, *new, *sizes, "--epochs", str(epochs), "--steps-per-epoch", str(job.steps_per_epoch)]
    dense = Job("dense", job.seed, 0).folder(root)
    schedule = ["--compress", f"dcgan/{job.name}", "--exp-load-weights-from", str(dense)]
    lr = ["--lr", str(job.lr)] if job.lr else []
    return [*start, *new, *schedule, *lr, "--steps-per-epoch", str(job.steps_per_epoch)]


def result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, or ``None``."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return None
    records = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    found = [
        r for r in records if r["kind"] == "result" and str(r["checkpoint"]).endswith("checkpoint.pth.tar")
    ]
    return found[-1] if found else None


def run(job: Job, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a job unless it has finished, and return its result."""
    folder = job.folder(root)
    found = result(folder)
    if found is None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command(job, root, options), env=environment, capture_output=True, text=True)
        found = result(folder)
        if done.returncode != 0 or found is None:
            raise SystemExit(f"{folder} failed:\n{done.stdout}\n{done.stderr}")
    print(f"{folder}: {found['metrics'][0]['value']:.3f}", file=sys.stderr, flush=True)
    return {**found, "job": job.name, "steps_per_epoch": job.steps_per_epoch, "lr": job.lr}


def jobs(options: argparse.Namespace) -> list[Job]:
    """Return all compressing jobs, seeds outermost, so that a stopped comparison holds whole seeds."""
    return [
        Job(f"{method}_{sparsity}", seed, options.steps_per_epoch, lr)
        for seed in options.seeds
        for sparsity in options.sparsities
        for method, lr in variants(options)
    ]


def variants(options: argparse.Namespace) -> list[tuple[str, float | None]]:
    """Return the rows: each method by its schedule, and the rivals with other learning rates."""
    own = [(method, None) for method in options.methods]
    return own + [(m, lr) for lr in options.lr for m in options.methods if m != "recommended"]


def cell(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def table(dense: list[dict[str, Any]], rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the Markdown table."""
    metric = dense[0]["metrics"][0]["name"]
    lines = [
        f"{metric}; dense {cell([r['metrics'][0]['value'] for r in dense])}; {20 * options.steps_per_epoch} "
        f"generator updates; mean ± standard deviation over {len(dense)} seeds",
        "",
        "| method | " + " | ".join(f"{sparsity} %" for sparsity in options.sparsities) + " |",
        "|---|" + "---|" * len(options.sparsities),
    ]
    for method, lr in variants(options):
        found = [
            [r["metrics"][0]["value"] for r in rows if r["job"] == f"{method}_{sparsity}" and r["lr"] == lr]
            for sparsity in options.sparsities
        ]
        label = METHODS[method] + (f", learning rate {lr:g}" if lr else "")
        lines.append(f"| {label} | " + " | ".join(map(cell, found)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="data set: a folder, or 'digits'")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--results", type=Path, help="JSON file for every number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=int, nargs="+", default=[25, 50, 75, 90])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dense-steps", type=int, default=3000)
    parser.add_argument("--steps-per-epoch", type=int, default=15, help="of the schedules' 20 epochs")
    parser.add_argument("--lr", type=float, nargs="*", default=[], help="also try the rivals with these")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        dense = list(pool.map(lambda seed: run(Job("dense", seed, 250), options.out, options), options.seeds))
        rows = list(pool.map(lambda job: run(job, options.out, options), jobs(options)))
    print(table(dense, rows, options))
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps({"dense": dense, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
