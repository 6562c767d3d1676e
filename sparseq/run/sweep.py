"""All stages of a recipe, one after the other or spread over processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from sparseq.run import data
from sparseq.run.folder import Folder, Stage, stages_of
from sparseq.run.progress import Bars
from sparseq.run.recipe import Recipe
from sparseq.run.stage import Workshop

__all__ = ["train_stages"]

_POLL = 0.1  # seconds between looks at what workers tell


def train_stages(workshop: Workshop, bars: Bars, workers: int = 1) -> None:
    """Train what is not trained yet.

    Args:
        workshop: knows recipe, data and folder.
        bars: are told how far it is.
        workers: processes; stages that do not wait for each other run at the same time, each
            with its share of torch's threads. The results are those of one process with as many
            threads.

    Raises:
        ArithmeticError: a loss is no longer finite.
        ChildProcessError: a worker process was ended from outside.
    """
    waiting = []
    for stage in stages_of(workshop.recipe):
        state = workshop.read(stage)
        if state is not None and state["done"]:
            bars.skip(workshop.steps(stage))
        else:
            waiting.append(stage)
    if workers == 1 or len(waiting) < 2:
        for stage in waiting:
            workshop.run(stage, bars)
    else:
        _spread(workshop, waiting, bars, workers)


def _spread(workshop: Workshop, waiting: list[Stage], bars: Bars, workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # forked OpenMP threads hang
    events = context.Queue()
    threads = max(torch.get_num_threads() // workers, 1)
    arguments = (workshop.recipe, workshop.folder.path, threads, events)
    pool = ProcessPoolExecutor(workers, context, _begin, arguments)
    running: dict[Future[None], Stage] = {}
    try:
        while waiting or running:
            for stage in list(waiting):
                if stage.parent not in waiting and stage.parent not in running.values():
                    waiting.remove(stage)
                    running[pool.submit(_run, stage)] = stage
            finished, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
            _tell(events, bars)
            for future in finished:
                del running[future]
                future.result()
        pool.shutdown()  # a worker's last words may come after its result, but before its end
        _tell(events, bars)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process ended without an answer, for want of memory perhaps; the same "
            "command goes on from where it was"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _tell(events: Any, bars: Bars) -> None:
    """Pass on what the workers told."""
    while True:
        try:
            what, *rest = events.get_nowait()
        except queue.Empty:
            return
        getattr(bars, what)(*rest)


class _Teller:
    """The watcher of a worker: the first process shows the bars."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def start(self, name: str, steps: int, done: int) -> None:
        self._events.put(("start", name, steps, done))

    def step(self, name: str, loss: float) -> None:
        self._events.put(("step", name, loss))

    def finish(self, name: str, line: str) -> None:
        self._events.put(("finish", name, line))


_worker: tuple[Workshop, _Teller]  # of this process, where it is a worker


def _begin(recipe: Recipe, path: Path, threads: int, events: Any) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    images = data.load(recipe.data, image_size=recipe.image_size)
    _worker = Workshop(recipe, images, Folder(path)), _Teller(events)


def _end_with_parent() -> None:
    """Nobody may write into a folder whose run was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(stage: Stage) -> None:
    workshop, teller = _worker
    workshop.run(stage, teller)
