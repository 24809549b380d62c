"""Runs one experiment in a process of its own: ``python -m sgc_distiller.studies.worker``.

The first line of its input is the job, in JSON. The input stays open for as long as the study lives: when it
ends, however it ends, so does this process, and nobody goes on writing into a run that another study resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "main", "perform"]

FAILED = 2
"""Exit code of an experiment that could not be run; the reason is the last line of its output."""


def main() -> int:
    """Perform the job that stands in the first line of the input."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_the_study, daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            perform(job)
            return 0
    except Exception as error:
        if os.environ.get("SGC_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return FAILED
    return 130


def perform(job: dict[str, Any]) -> None:
    """Train or compress, unless that has been done, and measure.

    Args:
        job: ``given`` for `sgc_distiller.settings.resolve`, ``folder``, ``dense``, whether it
            ``trains_dense``, and ``threads``.
    """
    import torch

    from sgc_distiller.experiment import compress, train
    from sgc_distiller.settings import resolve
    from sgc_distiller.studies.measures import measure

    torch.set_num_threads(job["threads"])
    given, folder = job["given"], Path(job["folder"])
    if not job["is_trained"]:
        if (folder / "checkpoint.pth.tar").is_file():
            given = {"resume_from": str(folder), **{k: v for k, v in given.items() if k == "device"}}
        (train if job["trains_dense"] else compress)(resolve(given))
    measure(folder, Path(job["dense"]), given.get("device"))


def _die_with_the_study() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
