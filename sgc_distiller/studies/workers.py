"""The worker processes of a study, seen from the study."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["Workers"]


class Workers:
    """Up to so many processes, each of which performs one job at a time and then the next.

    Args:
        threads: Threads of each.
        log: File that takes what they say beside their answers, such as tracebacks.
    """

    def __init__(self, threads: int, log: Path) -> None:
        self.threads = threads
        self.log = log
        self.stopped = False
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()

    def perform(self, job: dict[str, Any]) -> str:
        """Let an idle process, or a new one, perform a job; return why it failed, empty if it did not.

        Args:
            job: What `sgc_distiller.studies.worker.perform` is given.
        """
        with self._lock:
            if self.stopped:
                return "the study was stopped"
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps({**job, "threads": self.threads}) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return self._how_it_ended(worker)
        self._idle.put(worker)
        return str(json.loads(answer)["reason"])

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "sgc_distiller.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,  # Ctrl-C is the study's, which ends its workers
            )
        self._all.append(worker)
        return worker

    def _how_it_ended(self, worker: subprocess.Popen[str]) -> str:
        code = worker.wait()
        if self.stopped:
            return "the study was stopped"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"its process {how}; {self.log} may tell why"

    def stop(self) -> None:
        """End all processes, also those that are at work; what they have not finished is resumed later."""
        with self._lock:
            self.stopped = True
            for worker in self._all:
                worker.kill()
        for worker in self._all:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):  # of a job that it died before it could read
                    if pipe is not None:
                        pipe.close()
