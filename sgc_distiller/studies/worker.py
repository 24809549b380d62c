"""A process that runs the experiments of a study: ``python -m sgc_distiller.studies.worker``.

Each line of its input is a job in JSON, each line of its output an answer. The input stays open for as long
as the study lives: when it ends, however it ends, so does this process, in the middle of a step if need be,
and nobody goes on writing into a run that another study resumes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

from sgc_distiller.assembly import keep_data
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, train
from sgc_distiller.report import write_report
from sgc_distiller.settings import resolve
from sgc_distiller.studies.measures import measure

__all__ = ["main", "perform"]


def main() -> None:
    """Perform jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    keep_data()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        reason = ""
        try:
            perform(json.loads(jobs.get()))
        except UserError as error:
            reason = " ".join(str(error).split())
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        answers.write(json.dumps({"reason": reason}) + "\n")
        answers.flush()


def perform(job: dict[str, Any]) -> None:
    """Train or compress, unless that has been done, and measure.

    Args:
        job: ``given`` for `sgc_distiller.settings.resolve`, ``folder``, ``dense``, ``threads``, whether it
            ``trains_dense`` and whether it ``is_trained``.

    Raises:
        UserError: If the experiment cannot be run.
    """
    torch.set_num_threads(job["threads"])
    given, folder = job["given"], Path(job["folder"])
    if not job["is_trained"]:
        if (folder / "checkpoint.pth.tar").is_file():
            given = {"resume_from": str(folder), **{k: v for k, v in given.items() if k == "device"}}
        (train if job["trains_dense"] else compress)(resolve(given))
    elif not (folder / "report.html").is_file():
        write_report(folder)
    measure(folder, Path(job["dense"]), given.get("device"))


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(1)


if __name__ == "__main__":
    main()
