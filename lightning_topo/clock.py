"""The time that has passed, whatever happens to the machine's clock."""

import time


class Clock:
    """Seconds since it was made, by a clock that may be set back: what seems to take less than no time takes none.

    >>> clock = Clock()
    >>> 0.0 <= clock.seconds() <= clock.seconds()
    True
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._passed = 0.0

    def seconds(self) -> float:
        """How many have passed; never fewer than at the call before."""
        now = time.perf_counter()
        self._passed += max(now - self._last, 0.0)
        self._last = now
        return self._passed
