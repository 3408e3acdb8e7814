"""One writer a folder: a lock that ends with its process, and follows no link."""

import json
import textwrap

import pytest

from lightning_topo.outputs.record import RecordWriter, read_record
from lightning_topo.outputs.record._lock import LOCK, FolderBusy, lock_folder
from tests import warm
from tests.outputs.record.written import write


def steps_of(record, probe="distortion"):
    return [m.step for m in record.measurements if m.probe == probe]


def test_a_worker_that_outlives_its_writer_does_not_keep_the_folder(tmp_path):
    """DataLoader's workers inherit the lock; the process that took it is what counts."""
    code = """
        import os, sys, time
        from pathlib import Path
        from lightning_topo.outputs.record._lock import lock_folder
        lock = lock_folder(Path(sys.argv[1]))
        if os.fork() == 0:
            os.close(1)
            time.sleep(20)
        print(os.getpid(), flush=True)
        os._exit(0)
    """
    (tmp_path / "said").mkdir()
    done = warm.run(textwrap.dedent(code), tmp_path, folder=tmp_path / "said")
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == int(done.stdout)
    lock_folder(tmp_path).release()


def test_a_lock_is_taken_once_and_given_back(tmp_path):
    lock = lock_folder(tmp_path)
    assert lock.is_held
    with pytest.raises(FolderBusy, match="is being written"):
        lock_folder(tmp_path)
    lock.release()
    assert not (tmp_path / LOCK).exists()
    again = lock_folder(tmp_path)
    assert again.is_held
    again.release()


def test_where_no_lock_can_be_had_the_record_is_written_without(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    writer = RecordWriter.open(tmp_path / "topology")
    write(writer, [1])
    assert not writer.branch.lock.is_held
    writer.close()
    assert steps_of(read_record(tmp_path / "topology")) == [1]


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    RecordWriter.open(tmp_path / "run").close()
    assert (tmp_path / "precious").read_text() == "mine"
