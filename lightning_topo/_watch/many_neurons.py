"""Groups of too many neurons to compare all pairs: no exact measurement renews what is known of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_topo.geometry import MAX_ROWS
from lightning_topo.neurons import NeuronGroup


def is_measurable(group: NeuronGroup) -> bool:
    """Whether all pairs of a group are compared where its bound does not do."""
    return group.n <= MAX_ROWS


@dataclass(slots=True)
class ManyNeurons:
    """Those of `groups` that are never measured: each is open from where its snapshot certifies nothing to the next.

    The last snapshots of all of them took `seconds`. `given_up` are those that are open until the next: nothing is
    spent on them.
    """

    groups: Sequence[NeuronGroup]
    given_up: frozenset[str] = frozenset()
    _seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What a snapshot of all of them takes."""
        return sum(self._seconds.values())

    def give_up(self, uncertified: Iterable[str]) -> None:
        """The snapshot of these groups no longer certifies anything; those that can be measured are left alone."""
        many = {group.name for group in self.groups}
        self.given_up |= many.intersection(uncertified)

    def renewed(self, group: NeuronGroup, seconds: float) -> None:
        """A snapshot of this group was taken."""
        self.given_up -= {group.name}
        if not is_measurable(group):
            self._seconds = {**self._seconds, group.name: seconds}
