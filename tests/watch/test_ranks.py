"""Messages between processes: whole, in the order of the ranks, and no process is left waiting for one that failed."""

import json

import pytest
import torch
import torch.distributed as dist

from lightning_topo._watch.ranks import ElsewhereError, Ranks
from tests import warm

SIZE = 2


def test_alone_everything_is_ones_own_and_an_error_passes():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.owns(7)) == (0, 1, True)
    assert ranks.all("topic", {"a": 1}) == [{"a": 1}]
    assert ranks.first("topic", lambda: 3) == ranks.together("topic", lambda: 3) == 3
    for method in (ranks.first, ranks.together):
        with pytest.raises(ZeroDivisionError):
            method("topic", lambda: 1 / 0)
    tensor = torch.ones(2)
    assert ranks.send(tensor, 0, 0, lambda: torch.empty(2)) is tensor
    assert ranks.n_bytes == 0


def raised(action):
    try:
        action()
    except Exception as error:
        return [type(error) is ElsewhereError, str(error)]
    return None


def process(rank, folder):
    """What each of two processes sees; everything here is a collective."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    ranks, found = Ranks(), {}

    def fails_on(which):
        if rank == which:
            raise ValueError("torn")
        return rank

    found["owned"] = [k for k in range(5) if ranks.owns(k)]
    found["all"] = ranks.all("small", (rank, None))
    before = ranks.n_bytes
    found["long"] = [len(text) for text in ranks.all("grows", "x" * (5000 * (rank + 1)))]
    found["two rounds"] = ranks.n_bytes - before
    before = ranks.n_bytes
    found["again"] = [len(text) for text in ranks.all("grows", "x" * 11000)]
    found["one round"] = ranks.n_bytes - before
    found["first"] = ranks.first("groups", lambda: ["x" * 3000, rank])
    found["first fails"] = raised(lambda: ranks.first("groups", lambda: fails_on(0)))
    found["first of others"] = raised(lambda: ranks.first("groups", lambda: fails_on(1)))
    found["together"] = ranks.together("start", lambda: 10 + rank)
    found["together fails"] = raised(lambda: ranks.together("start", lambda: fails_on(1)))
    sent = ranks.send(torch.arange(3.0) if rank == 1 else None, 1, 0, lambda: torch.empty(3))
    found["sent"] = None if sent is None else sent.tolist()
    found["unsendable"] = raised(lambda: ranks.all("small", (lambda: 0) if rank == 1 else 0))
    found["farewell"] = ranks.farewell("at the end", {"rank": rank}, waits=True)
    # The first leaves in haste; the other takes what it has left.
    found["haste"] = ranks.farewell("in haste", rank, waits=rank == 1)
    if rank == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning_topo._watch.ranks._MOST_WAIT", 0.5)
            found["gone"] = ranks.farewell("gone", rank, waits=True)
    found["after"] = ranks.all("small", rank)  # they are still in step
    found["alone"] = Ranks(alone=True).all("small", rank)
    dist.destroy_process_group()
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    code = f"import sys; from {__name__} import process; process(int(sys.argv[1]), sys.argv[2])"
    workers = [warm.start(code, rank, folder, log=folder / f"log-{rank}.txt") for rank in range(SIZE)]
    assert [worker.wait(120) for worker in workers] == [0, 0], (folder / "log-0.txt").read_text()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


def test_every_process_has_every_message_by_rank_however_long(seen):
    for found in seen:
        assert found["all"] == [[0, None], [1, None]]
        assert found["long"] == [5000, 10000]
        assert found["again"] == [11000, 11000]
        assert found["after"] == [0, 1]
    assert [found["alone"] for found in seen] == [[0], [1]]
    assert [found["owned"] for found in seen] == [[0, 2, 4], [1, 3]]


def test_a_topic_whose_messages_have_grown_takes_one_round_from_then_on(seen):
    for found in seen:
        assert found["two rounds"] > found["one round"] > 11000


def test_what_the_first_makes_all_have_and_its_error_too(seen):
    for found in seen:
        assert found["first"] == ["x" * 3000, 0]
        assert found["first of others"] is None  # it runs on the first alone
    assert seen[0]["first fails"] == [False, "torn"]
    assert seen[1]["first fails"] == [True, "groups failed on process 0: ValueError: torn"]


def test_an_error_on_one_process_is_raised_on_all_where_all_work_together(seen):
    assert [found["together"] for found in seen] == [10, 11]
    assert seen[1]["together fails"] == [False, "torn"]
    assert seen[0]["together fails"] == [True, "start failed on process 1: ValueError: torn"]


def test_a_message_that_cannot_be_sent_is_an_error_on_all(seen):
    for found in seen:
        is_elsewhere, why = found["unsendable"]
        assert is_elsewhere
        assert "process 1 has a message that cannot be pickled" in why


def test_at_the_end_each_leaves_a_message_and_nobody_waits_for_one_that_has_gone(seen):
    assert [found["farewell"] for found in seen] == [[{"rank": 0}, {"rank": 1}]] * 2
    assert [found["haste"] for found in seen] == [[0, None], [0, 1]]
    assert seen[1]["gone"] == [None, 1]
    assert Ranks().farewell("alone", 7, waits=True) == [7]


def test_a_tensor_is_brought_to_the_one_process_that_it_is_for(seen):
    assert [found["sent"] for found in seen] == [[0.0, 1.0, 2.0], None]
