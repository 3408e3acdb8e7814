"""A record written: strict JSON, whole lines, nothing lost."""

import errno
import json
import math
import os
import resource
import signal
import textwrap
import threading

import pytest
import torch

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordWriter, _write, read_record
from lightning_topo.phases import EventName, Severity, TopologyEvent
from tests import warm


def some(step, **values):
    return Measurement(step, 0, "distortion", "net.0", values or {"critical_ratio": 0.1 * step})


EVENT = TopologyEvent(
    EventName.TOPOLOGY_BREAKDOWN, 3, 1, "net.0", Severity.ERROR, math.inf, 1.0, "What <b>happened</b>.", "Do."
)


def test_lines_are_strict_json_with_the_fields_of_the_contract(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.measurement(some(1, critical_ratio=math.inf))
    writer.event(EVENT)

    def forbid(text):
        raise AssertionError(f"{text} is no strict JSON")

    for name, fields in {
        MEASUREMENTS: ["step", "epoch", "probe", "group", "reference_step", "critical_ratio"],
        EVENTS: ["name", "step", "epoch", "group", "severity", "value", "threshold", "message", "remedy"],
    }.items():
        # Read while the run is open: every line is flushed as it is written.
        header, line = (json.loads(text, parse_constant=forbid) for text in (tmp_path / name).read_text().splitlines())
        assert header == {"schema": 1, "run_id": writer.run_id}
        assert list(line) == fields
    assert line["value"] == "inf"
    assert line["severity"] == "error"


def test_a_fresh_run_never_writes_into_anothers_record(tmp_path):
    folders = [RecordWriter.open(tmp_path / "topology").dirpath.name for _ in range(3)]
    assert folders == ["topology", "topology-v1", "topology-v2"]


def test_a_resumed_run_appends_and_a_strange_one_begins_anew(tmp_path):
    writer = RecordWriter.open(tmp_path / "topology")
    writer.measurement(some(1))
    writer.close()
    again = RecordWriter.open(writer.dirpath, resume=(writer.dirpath, writer.run_id))
    again.measurement(some(2))
    again.close()
    assert [m.step for m in read_record(writer.dirpath).measurements] == [1, 2]
    assert (writer.dirpath / MEASUREMENTS).read_text().count("schema") == 1
    strange = RecordWriter.open(writer.dirpath, resume=(writer.dirpath, "another"))
    assert strange.dirpath.name == "topology-v1"
    assert RecordWriter.open(tmp_path / "nowhere", resume=(None, writer.run_id)).dirpath.name == "nowhere"


def test_the_partial_line_of_a_killed_process_is_skipped_and_then_cut(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.measurement(some(1))
    writer.close()
    with (tmp_path / MEASUREMENTS).open("a") as file:
        file.write('{"step": 2, "epo')
    assert read_record(tmp_path).n_unreadable == 1
    RecordWriter.open(tmp_path, resume=(tmp_path, writer.run_id)).measurement(some(3))
    record = read_record(tmp_path)
    assert [m.step for m in record.measurements] == [1, 3]
    assert record.n_unreadable == 0


def test_every_line_survives_a_kill(tmp_path):
    code = f"""
        import os, signal
        from lightning_topo.measurement import Measurement
        from lightning_topo.outputs.record import RecordWriter
        writer = RecordWriter.open({str(tmp_path)!r})
        for step in range(1, 101):
            writer.measurement(Measurement(step, 0, "distortion", "g", {{"critical_ratio": 0.5}}))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "said").mkdir()
    done = warm.run(textwrap.dedent(code), folder=tmp_path / "said")
    assert done.returncode == -signal.SIGKILL
    record = read_record(tmp_path)
    assert [m.step for m in record.measurements] == list(range(1, 101))
    assert record.n_unreadable == 0


def test_a_full_disk_loses_nothing_once_there_is_room_again(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.measurement(some(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # Room for a part of the next line only.
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / MEASUREMENTS).stat().st_size + 10, limits[1]))
        for step in (2, 3):
            with pytest.raises(OSError, match=f"no room|{os.strerror(errno.EFBIG)}"):
                writer.measurement(some(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert read_record(tmp_path).n_unreadable == 0
    writer.measurement(some(4))
    assert [m.step for m in read_record(tmp_path).measurements] == [1, 2, 3, 4]


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "topology").write_text("in the way")
    with pytest.raises(OSError, match="topology"):
        RecordWriter.open(tmp_path / "topology")
    with pytest.raises(OSError, match="topology"):
        RecordWriter.open(tmp_path / "topology" / "below")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_comes_back_exactly(tmp_path, dtype):
    cloud = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    writer = RecordWriter.open(tmp_path)
    assert writer.read_reference("net.0") is None
    writer.reference(7, [("net.0", cloud), ("net.2", cloud + 1)])
    writer.measurement(some(8))
    writer.close()
    resumed = RecordWriter.open(tmp_path, resume=(tmp_path, writer.run_id))
    assert torch.equal(resumed.read_reference("net.0").to(dtype), cloud)
    assert resumed.reference_step == 7
    assert resumed.read_reference("net.4") is None
    assert '"reference_step": 7' in (tmp_path / MEASUREMENTS).read_text()


@pytest.mark.parametrize("fails", [False, True])
def test_a_device_s_clouds_are_written_aside(tmp_path, monkeypatch, fails):
    """Training goes on while they are written, with the values that they had."""
    cloud = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    may_write = threading.Event()
    given = _write.write_arrays

    def slowly(path, arrays, **options):
        assert may_write.wait(60)
        if fails:
            raise OSError(errno.ENOSPC, "no room")
        given(path, arrays, **options)

    monkeypatch.setattr(_write, "write_arrays", slowly)
    monkeypatch.setattr(_write, "is_away", lambda cloud: True)
    writer = RecordWriter.open(tmp_path)
    before = cloud.clone()
    writer.reference(7, [("net.0", cloud.clone())])
    assert not (tmp_path / "reference" / "clouds.npz").exists()
    threading.Timer(0.1, may_write.set).start()
    found = writer.read_reference("net.0")
    assert found is None if fails else torch.equal(found, before)
    writer.close()
    assert (tmp_path / "reference" / "clouds.npz").exists() != fails
    assert not [thread for thread in threading.enumerate() if "reference" in thread.name]


def test_what_was_written_here_is_believed_and_what_another_has_written_is_checked(tmp_path):
    cloud = torch.arange(3000.0).reshape(1000, 3)
    writer = RecordWriter.open(tmp_path)
    writer.reference(7, [("net.0", cloud)])
    path = tmp_path / "reference" / "clouds.npz"
    data = path.read_bytes()
    at = data.index(cloud[500].numpy().tobytes())
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    os.utime(path, ns=(0, 0))
    assert writer.read_reference("net.0") is None
    path.write_bytes(data)
    assert torch.equal(writer.read_reference("net.0"), cloud)
    writer.close()
