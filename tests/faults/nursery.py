"""Processes for real trainings, cheap: everything is imported once, and every training is forked from that."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TIMEOUT = 120


class Nursery:
    """Starts functions in processes of their own; what they print goes into a file beside their work."""

    def __init__(self) -> None:
        # The fork server finds the modules to import by this path only.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.warm"])

    def start(self, work: Callable[..., object], root: Path, *args: object):
        """A process that does `work(root, *args)`."""
        process = self._context.Process(target=_guarded, args=(work, root, args), daemon=False)
        process.start()
        return process

    def run(self, work: Callable[..., object], root: Path, *args: object) -> int:
        """Do it and wait; the exit status, negative for a signal."""
        process = self.start(work, root, *args)
        process.join(_TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"{work.__name__} was not done after {_TIMEOUT} s\n{said(root)}")
        return process.exitcode or 0

    def succeeds(self, work: Callable[..., object], root: Path, *args: object) -> None:
        """Do it and wait; an error of it is one here."""
        status = self.run(work, root, *args)
        assert status == 0, f"{work.__name__} ended with {status}\n{said(root)}"


def said(root: Path) -> str:
    """What the processes that worked there have printed."""
    return "".join(path.read_text(errors="replace")[-4000:] for path in sorted(root.glob("*.log")))


def _guarded(work: Callable[..., object], root: Path, args: tuple[object, ...]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    log = (root / f"{os.getpid()}.log").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs have to do without
    try:
        work(root, *args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None
