"""The page of a run that goes on: rewritten from what was appended, by a separate process, until the run is over."""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from lightning_topo.outputs.page._page import Live, write_report
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, REPORT, RecordFollower

FEWEST_SECONDS = 15.0
"""The page is rewritten at most this often."""
MOST_SHARE = 0.01
"""The share of a run of some minutes that the process may take."""
_PAGES = 0.6
"""Of that, the pages from the second on have this part: the start and the last page have the rest."""
_LOOK = 2.0
_BYTES_PER_SECOND = 4e6
"""About so much of a record is read (benchmarks/long_record.py)."""


def follow_page(
    dirpath: Path,
    signal: BinaryIO,
    *,
    share: float = MOST_SHARE,
    fewest_seconds: float = FEWEST_SECONDS,
) -> Path:
    """Write the page, again as the record grows, and a last time when `signal` ends or says anything; the page.

    The first one is written now, or, where a page of an earlier session is there, when it is paid for. What was read is
    kept, thinned: each time only the new lines are read. Where the process that began this one is gone, the run is over
    too.

    Raises `OSError` and `ValueError` as `RecordFollower` and `write_report` do.
    """
    over = threading.Event()
    threading.Thread(target=_wait, args=(signal, over), daemon=True).start()
    parent = os.getppid()
    follower = RecordFollower(dirpath)
    page = dirpath / REPORT
    old = record_bytes(dirpath) if page.is_file() else 0
    due, shown, wait = time.monotonic() + first_pause(old, _PAGES * share, fewest_seconds), -1, fewest_seconds
    while not over.is_set() and os.getppid() == parent:
        size = record_bytes(dirpath)
        if time.monotonic() >= due and size != shown:
            began, used = time.monotonic(), time.process_time()
            # A folder that was deleted comes again, and a disk that is full may have room again.
            with suppress(OSError):
                shown = size
                write_report([follower.read(whole=False)], page, live=Live(str(size), wait + _LOOK))
            wait = pause(time.process_time() - used, _PAGES * share, fewest_seconds)
            due = began + wait
        over.wait(_LOOK)
    return write_report([follower.read()], page)


def pause(used: float, share: float, fewest_seconds: float) -> float:
    """Seconds from one page to the next, so that one that took `used` seconds takes no larger share of the time.

    >>> pause(0.5, 0.01, 15.0), pause(0.1, 0.01, 15.0)
    (50.0, 15.0)
    """
    return max(fewest_seconds, used / share)


def first_pause(old: int, share: float, fewest_seconds: float) -> float:
    """Seconds to the first page where so many bytes of record, with a page, are those of an earlier session.

    >>> first_pause(0, 0.01, 15.0), first_pause(40_000_000, 0.01, 15.0)
    (0.0, 1000.0)
    """
    return pause(old / _BYTES_PER_SECOND, share, fewest_seconds) if old else 0.0


def follow_politely(dirpath: Path) -> Path:
    """`follow_page`, told by the standard input, at the lowest priority."""
    if hasattr(os, "nice"):
        os.nice(19)
    return follow_page(dirpath, sys.stdin.buffer)


def record_bytes(dirpath: Path) -> int:
    """How many bytes of lines a record has."""
    paths = [dirpath / MEASUREMENTS, dirpath / EVENTS]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _wait(signal: BinaryIO, over: threading.Event) -> None:
    # A byte, not only the end: workers that the training has forked may hold the pipe open.
    signal.read(1)
    over.set()
