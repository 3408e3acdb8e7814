"""Units that are gathered while a recorded step is replayed, here those of one process."""

import pytest
import torch

from lightning_topo._tape import CannotReplay
from lightning_topo._watch import gathering, sharded_loss
from tests.watch.shards import Attends, in_shards, recorded, tokens

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("at", [0, 1])
def test_a_replay_that_breaks_off_gathers_what_the_others_gather(monkeypatch, at):
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    gathered = []
    visit = gathering.Gathering._visit

    def noted(self, **options):
        gathered.append(self.plan[self.n_visited].unit.path)
        visit(self, **options)

    monkeypatch.setattr(gathering.Gathering, "_visit", noted)
    with loss(None) as evaluate:
        for _ in range(at):
            evaluate()
        whole = list(gathered) or ["", "attention", "block", "block"]
        gathered.clear()

        def breaks_off(tape, named, **options):
            raise torch.OutOfMemoryError(f"after {named['embed.weight'].shape}")

        monkeypatch.setattr(sharded_loss, "replay", breaks_off)
        with pytest.raises(CannotReplay, match=r"after torch\.Size"):
            evaluate()
    assert gathered == whole


def test_where_there_is_no_room_nothing_is_gathered(monkeypatch):
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())

    def full(*size, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(gathering.torch, "empty", full)
    monkeypatch.setattr(sharded_loss, "replay", lambda *args, **options: pytest.fail("replayed"))
    with loss(None) as evaluate, pytest.raises(CannotReplay, match="memory runs out"):
        evaluate()
