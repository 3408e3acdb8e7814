"""A process that dies fails the scenario that it dies in, and no other."""

import pytest
from torch import distributed

from tests.distributed import processes

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")


def test_a_process_that_dies_fails_its_scenario_alone(tmp_path):
    """The signal, the log of each process and the Python frame are in the message; the rest is as if nothing was."""
    saw = processes.train_together(["answering-before", "dying", "answering-after"], tmp_path, seconds=60)
    for when in ("before", "after"):
        assert saw[f"answering-{when}"] == [{"rank": rank, "when": when} for rank in (0, 1)]
    with pytest.raises(pytest.fail.Exception) as failed:
        saw["dying"]
    said = str(failed.value)
    assert "dying on process 0: ended with exit code 1\nabout to die" in said
    assert "dying on process 1: ended with SIGSEGV\nabout to die" in said
    assert "in dying" in said


class Ended:
    """A process that has ended."""

    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code


def test_processes_that_die_before_they_begin_are_not_started_again(tmp_path, monkeypatch):
    launched = []

    def launch(names, out, size):
        launched.append(names)
        for rank in range(size):
            (out / f"log-{rank}.txt").write_text("no port")
        return [Ended(1)] * size

    monkeypatch.setattr(processes, "launch", launch)
    with pytest.raises(pytest.fail.Exception, match="ended with exit code 1\nno port"):
        processes.train_together(["plain-ddp"], tmp_path)
    assert len(launched) == 1
