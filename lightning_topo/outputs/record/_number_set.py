"""A set of line numbers or steps in bounded memory."""

_MOST = 1 << 28


class Places:
    """Numbers, a bit each; none of 2^28 or more is kept.

    >>> places = Places()
    >>> places.add(9)
    >>> 9 in places, 8 in places, 10**9 in places
    (True, False, False)
    """

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, i: int) -> None:
        """Keep a number."""
        if i >= _MOST:
            return
        if i // 8 >= len(self._bits):
            self._bits.extend(bytes(i // 8 + 1 - len(self._bits) + 1024))
        self._bits[i // 8] |= 1 << i % 8

    def __contains__(self, i: int) -> bool:
        return i // 8 < len(self._bits) and bool(self._bits[i // 8] >> i % 8 & 1)
