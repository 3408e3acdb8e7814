"""How long trainings take, and how much of that is what watches them."""

import tempfile
import time
from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader


def clock(device: torch.device) -> float:
    """Seconds: of this process on a CPU, where other processes may be busy; of the wall where a GPU does the work."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch(L.Callback):
    """The time from the beginning of a training to its end, with what the callbacks after this one do at its start."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds = 0.0

    def on_train_start(self, *_: object) -> None:
        self._began = self._now()

    def on_train_end(self, *_: object) -> None:
        self.seconds = self._now() - self._began


class Laps:
    """The time that callbacks take of each step, between one callback before them and one after them.

    A lap goes from the end of a step to the end of the next, the first from the beginning of the first step; one more
    holds what comes after the last step. `marks` are the times at which laps begin, `spent` what was spent in each.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entered = self._left = 0.0
        self.marks: list[float] = []
        self.spent: list[float] = []

    def around(self, *watched: L.Callback) -> list[L.Callback]:
        """These callbacks, between those that look at the clock."""
        return [_Edge(self._enter), *watched, _Edge(self._leave)]

    def share(self, start: int = 0) -> float:
        """Of the time from a lap's beginning to the end."""
        return sum(self.spent[start:]) / (self._left - self.marks[start])

    def _enter(self, of_step: bool) -> None:
        self._entered = self._now()
        if not self.marks:
            self._begin(self._entered)

    def _leave(self, of_step: bool) -> None:
        self._left = self._now()
        self.spent[-1] += self._left - self._entered
        if of_step:
            self._begin(self._left)

    def _begin(self, now: float) -> None:
        self.marks.append(now)
        self.spent.append(0.0)


class _Edge(L.Callback):
    """Calls back where a monitor works during training; with True at the end of a step."""

    def __init__(self, call: Callable[[bool], None]) -> None:
        self._call = call

    def on_train_batch_start(self, *_: object) -> None:
        self._call(False)

    def on_train_batch_end(self, *_: object) -> None:
        self._call(True)

    def on_train_epoch_end(self, *_: object) -> None:
        self._call(False)


def train(
    module: L.LightningModule, data: DataLoader, steps: int, device: torch.device, callbacks: Sequence[L.Callback]
) -> None:
    """So many steps with these callbacks and nothing else: no logger, no checkpoint, no bar."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
        )
        trainer.fit(module, data)
