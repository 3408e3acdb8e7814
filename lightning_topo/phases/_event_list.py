"""Hold events in bounded memory: the first of each kind in each group, and the most severe of the rest."""

from collections.abc import Hashable, Iterator

from lightning_topo.phases._event import EventName, Severity, TopologyEvent

_MOST = 20_000
_MILDEST_FIRST = (Severity.INFO, Severity.WARN, Severity.ERROR)


class EventList:
    """Holds events in the order in which they came, in bounded memory.

    If there are more than `most` events (20,000 by default), every second one of the mildest is dropped, again and
    again, until three quarters of `most` are left. The first event of each name in each group stays. `n_dropped` counts
    the dropped events.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kept: dict[Hashable, TopologyEvent] = {}
        self._firsts: dict[tuple[EventName, str], Hashable] = {}
        self._n = 0
        self.n_dropped: int = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[TopologyEvent]:
        return iter(self._kept.values())

    def add(self, event: TopologyEvent, key: Hashable = None) -> None:
        """Append an event to the list, and remove the earlier event with the same `key`.

        An event without a key removes nothing.
        """
        if key is None:
            self._n += 1
            key = self._n
        self._kept.pop(key, None)
        self._kept[key] = event
        self._firsts.setdefault((event.name, event.group), key)
        if len(self._kept) > self._most:
            self._thin()

    def _thin(self) -> None:
        firsts = set(self._firsts.values())
        for severity in _MILDEST_FIRST:
            mild = [key for key, event in self._kept.items() if event.severity is severity and key not in firsts]
            while mild and len(self._kept) > self._most * 3 // 4:
                for key in mild[::2]:
                    del self._kept[key]
                self.n_dropped += len(mild[::2])
                mild = mild[1::2]
        if len(self._kept) <= self._most * 3 // 4:
            return
        self._most = max(self._most, 2 * len(self._kept))  # the first of each group are kept, however many
