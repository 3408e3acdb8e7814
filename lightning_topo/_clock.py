"""Elapsed time, also where the machine's clock is set back."""

import time


class Clock:
    """Seconds since construction, never falling: negative intervals count as zero.

    >>> clock = Clock()
    >>> 0.0 <= clock.seconds() <= clock.seconds()
    True
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._passed = 0.0

    def seconds(self) -> float:
        """Elapsed seconds; never fewer than at the last call."""
        now = time.perf_counter()
        self._passed += max(now - self._last, 0.0)
        self._last = now
        return self._passed
