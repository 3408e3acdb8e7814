"""Lines and progress in the terminal of a Lightning training, above its progress bar where there is one."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


@dataclass(frozen=True, slots=True)
class TrainerPrinter:
    """Speaks on rank 0.

    Lines go through Lightning's own logger, so `logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)`
    silences them too.
    """

    trainer: Trainer

    def progress(self, values: Mapping[str, str]) -> None:
        """Show named values in the progress bar."""
        if self._bar() is not None:
            # Lightning's bars also show text, and round numbers to three places: too coarse for a small ratio.
            cast(dict[str, Any], self.trainer.progress_bar_metrics).update(values)

    def say(self, text: str) -> None:
        """Show lines above the progress bar."""
        bar = self._bar()
        # Rich draws its bar anew below what is printed, but not below what is logged.
        if _is_rich(bar) and not _is_in_notebook():
            if logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO):
                bar.print(text)
            return
        with _above(bar):
            rank_zero_info(text)

    def _bar(self) -> Any:
        """Lightning's progress bar, if it is shown; only some kinds have such a flag."""
        bar = self.trainer.progress_bar_callback
        return bar if getattr(bar, "is_enabled", False) else None


def _is_rich(bar: Any) -> bool:
    return any(cls.__name__ == "RichProgressBar" for cls in type(bar).__mro__)


def _is_in_notebook() -> bool:
    """Whether rich takes this for a notebook: what is printed there beside its bar comes twice, or without end."""
    from rich import get_console

    return get_console().is_jupyter


def _above(bar: Any) -> AbstractContextManager[Any]:
    """While a line is written, a bar of tqdm is cleared away; others need no help."""
    try:
        return type(bar.train_progress_bar).external_write_mode()
    except (AssertionError, AttributeError, TypeError):  # no bar, another kind, or none drawn yet
        return nullcontext()
