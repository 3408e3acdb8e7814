"""What is said of the whole network's steps where changes of state are too many to be kept."""

from lightning_topo._figures.coverage import Stretch
from lightning_topo.measurement import StepState
from lightning_topo.outputs.record import _network as network
from lightning_topo.outputs.record._network import NetworkTally


def joined(monkeypatch, *pieces):
    monkeypatch.setattr(network, "_MOST_PIECES", 1)
    tally = NetworkTally()
    for piece in pieces:
        tally.add(Stretch(*piece))
    return tally.whole(0)


def test_neighbours_are_joined_in_the_weaker_state(monkeypatch):
    pieces = (1, 2, StepState.EXACT), (3, 4, StepState.BOUNDED)
    assert joined(monkeypatch, *pieces) == (Stretch(1, 4, StepState.BOUNDED),)


def test_nothing_is_claimed_of_steps_between_two_lines(monkeypatch):
    pieces = (1, 2, StepState.EXACT), (5, 6, StepState.EXACT)
    assert joined(monkeypatch, *pieces) == (Stretch(1, 6, StepState.OPEN),)
