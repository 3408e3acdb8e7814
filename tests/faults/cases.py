"""The faults: each trains for real, breaks something, and holds what is left against what was published."""

import json
import math
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_topo import Distortion, Persistence, TopologyEarlyStopping, TopologyMonitor, TopologyStepGuard
from lightning_topo.homology import available_engines
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, read_record
from tests.faults.audit import audit, opens, published
from tests.faults.folders import FOLDER_CASES
from tests.faults.nursery import Nursery, said
from tests.faults.survived import Survived
from tests.faults.training import CHECKPOINTS, PUBLISHED, At, Small, last_checkpoint, probes, train

# --- what the processes do --------------------------------------------------------------------------------------------


def first(root: Path, max_steps: int = 14) -> None:
    train(root, max_steps, report=True)


def resumed(root: Path, max_steps: int = 20) -> None:
    trainer = train(root, max_steps, resume=True, report=True)
    assert trainer.global_step == max_steps


def begun_from(root: Path, checkpoint: Path, max_steps: int) -> None:
    assert train(root, max_steps, checkpoint=checkpoint).global_step == max_steps


def on_a_full_disk(root: Path) -> None:
    """No file may grow beyond what the record is at step 12, until step 17."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_: L.Trainer) -> None:
        # Room for a part of the next line only, so that a write is cut off in its middle.
        room = (root / "topology" / MEASUREMENTS).stat().st_size + 40
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    def free(_: L.Trainer) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    # No checkpoint is written while there is no room: that Lightning stops there is not ours to mend.
    train(root, 24, callbacks=[At({12: fill, 17: free})])


def with_a_file_in_the_way(root: Path) -> None:
    (root / "topology").write_text("in the way")
    trainer = train(root, 12)
    assert trainer.global_step == 12
    assert trainer.callback_metrics["topology/critical_ratio"] > 0


class Raising(CSVLogger):
    """A logger that takes nothing of the monitor's."""

    def log_metrics(self, metrics, step=None) -> None:
        raise ConnectionError("the tracker is down")


def with_a_logger_that_raises(root: Path) -> None:
    logger = Raising(root, name="", version="")
    trainer = train(root, 20, logger=logger, log_every_n_steps=2)
    assert trainer.global_step == 20


def with_a_nan_loss(root: Path) -> None:
    trainer = train(root, 20, module=Small(poisoned_at=9))
    assert trainer.global_step == 20


def with_a_clock_that_jumps(root: Path) -> None:
    """The wall clock and the counter go an hour back, and then a day ahead, in the midst of training."""
    offset, seen = [0.0], []
    real = {name: getattr(time, name) for name in ("time", "perf_counter", "monotonic")}

    def jump(by: float) -> Callable[[L.Trainer], None]:
        return lambda _: offset.__setitem__(0, offset[0] + by)

    class Overhead(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            seen.append(float(trainer.callback_metrics["topology/overhead"]))

    for name, clock in real.items():
        setattr(time, name, lambda clock=clock: clock() + offset[0])
    slots = {}
    try:
        monitor = TopologyMonitor(verbose=False)  # everything on "auto": its pace is what the clock could upset
        actions = {150: jump(-3600.0), 300: jump(86_400.0), 450: jump(-90_000.0)}
        trainer = train(root, 600, monitor=monitor, callbacks=[Overhead(), At(actions)])
        slots = monitor.state_dict()["slots"]
    finally:
        for name, clock in real.items():
            setattr(time, name, clock)
    assert trainer.global_step == 600
    assert all(0.0 <= overhead <= 1.0 for overhead in seen), (min(seen), max(seen))
    assert all(1 <= stride < 10**6 for _, stride, _ in slots.values()), slots


def until_sigterm(root: Path) -> None:
    train(root, 1000, report=True, callbacks=[At({15: lambda _: os.kill(os.getpid(), signal.SIGTERM)})])


def computing_elsewhere(root: Path, end: str) -> None:
    """Train with a worker that still computes when training ends in one way or another."""

    def finish(trainer: L.Trainer) -> None:
        worker = trainer.callbacks[0].watch._worker  # type: ignore[attr-defined]
        # More than it can do in the time that is left to it.
        points = torch.randn(1200, 3)
        worker.submit([torch.cdist(points, points).numpy()], 1, available_engines()[0], spanning=False)
        (root / "worker").write_text(str(worker.pid))
        if end == "exception":
            raise RuntimeError("the training fails")
        if end == "interrupt":
            raise KeyboardInterrupt
        if end != "success":
            os.kill(os.getpid(), getattr(signal, end))

    measured = [Distortion(every_n_steps=1), Persistence(every_n_steps=2, lag=3)]
    train(root, 11, monitor=TopologyMonitor(measured, verbose=False), callbacks=[At({11: finish})])


def on_ranks(root: Path, max_steps: int, ranks: int) -> None:
    options = {} if ranks == 1 else {"devices": ranks, "strategy": "ddp_fork", "use_distributed_sampler": False}
    train(root, max_steps, resume=last_checkpoint(root) is not None, **options)


def with_gates_and_damaged_states(root: Path, damage: int) -> None:
    """Resume from a checkpoint whose states of our callbacks are not what they were."""
    path = last_checkpoint(root)
    assert path is not None
    checkpoint = torch.load(path, weights_only=False)
    for key, state in checkpoint["callbacks"].items():
        if "Topology" in key:
            checkpoint["callbacks"][key] = DAMAGES[damage](state)
    torch.save(checkpoint, path)
    gates = [TopologyEarlyStopping("edge_of_stability_enter", min_count=10**6), TopologyStepGuard(max_ratio=0.9)]
    monitor = TopologyMonitor(probes(), verbose=False, max_overhead=None, on_error="raise")
    trainer = train(root, 16, resume=True, callbacks=gates, monitor=monitor)
    assert trainer.global_step == 16


def with_gates(root: Path) -> None:
    train(root, 13, callbacks=[TopologyEarlyStopping("edge_of_stability_enter", min_count=10**6), TopologyStepGuard()])


DAMAGES: list[Callable[[dict], object]] = [
    lambda state: "garbage",
    lambda state: {**state, "version": 10**9},
    lambda state: {name: value for name, value in state.items() if name == "version"},
    lambda state: {**state, "detector": {**state.get("detector", {}), "edge": {"inside": "?", "recent": "abc"}}},
    lambda state: {**state, "detector": [1, 2], "counted": {"step": "x"}},
    lambda state: {**state, "slots": {"distortion": [1, -3, 1]}, "counted": None},
    lambda state: {**state, "dirpath": 7, "n_held": "many"},
    lambda state: {**state, "step": math.inf, "counted": {"step": math.inf, "counts": {"x": math.inf}}},
    lambda state: {**state, "slots": {"distortion": [1, math.inf, 1]}, "n_held": math.nan, "stopped_epoch": math.inf},
]
"""What befalls the states of our callbacks in a checkpoint."""


# --- the cases --------------------------------------------------------------------------------------------------------


def killed(nursery: Nursery, root: Path, times: int = 20) -> Survived:
    """`kill -9` at random moments of the start, a step, a write, the end; the run is resumed each time."""
    random_ = random.Random(times)
    goal = 60
    for _ in range(times):
        before = _told(root)
        process = nursery.start(resumed if last_checkpoint(root) else first, root, goal)
        # From the moment that it has measured something new, unless it is to die before.
        patience = time.monotonic() + 60.0
        while random_.random() > 0.001 and _told(root) == before and process.is_alive():
            assert time.monotonic() < patience
            time.sleep(0.002)
        time.sleep(random_.uniform(0.0, 0.4))
        process.kill()
        process.join()
        goal += 6
    nursery.succeeds(resumed, root, goal)
    lost = audit(root, n_kills=times)
    return Survived(times, times, lost)


def disk_full(nursery: Nursery, root: Path) -> Survived:
    """The disk is full for five steps, then has room again."""
    nursery.succeeds(on_a_full_disk, root)
    return Survived(1, 1, audit(root))


def file_in_the_way(nursery: Nursery, root: Path) -> Survived:
    """A file is in the place of the run folder: there is no record, and training and publishing go on."""
    nursery.succeeds(with_a_file_in_the_way, root)
    assert (root / "topology").read_text() == "in the way"
    assert {step for _, step, probe, _ in published(root) if probe == "distortion"} == set(range(1, 13))
    return Survived(1, 1, 0)


def logger_raises(nursery: Nursery, root: Path) -> Survived:
    """A logger raises at every call."""
    nursery.succeeds(with_a_logger_that_raises, root)
    return Survived(1, 1, audit(root))


def nan_loss(nursery: Nursery, root: Path) -> Survived:
    """The loss is NaN at one step, and the weights from then on."""
    nursery.succeeds(with_a_nan_loss, root)
    names = [event.name for event in read_record(root / "topology").events]
    assert "instability" in names
    assert "probe_failed" in names
    return Survived(1, 1, audit(root))


def clock_jumps(nursery: Nursery, root: Path) -> Survived:
    """The clock jumps an hour back, a day ahead, more than a day back."""
    nursery.succeeds(with_a_clock_that_jumps, root)
    return Survived(3, 3, audit(root))


def sigterm(nursery: Nursery, root: Path) -> Survived:
    """A scheduler sends SIGTERM: the record is closed and the report written; the run is resumed afterwards."""
    assert nursery.run(until_sigterm, root) != 0
    page, patience = root / "topology" / "report.html", time.monotonic() + 60.0
    while not page.is_file():  # a separate process writes it, once the training has ended
        assert time.monotonic() < patience
        time.sleep(0.02)
    assert page.stat().st_size > 10**6
    steps = [step for _, step, probe, _ in published(root) if probe == "distortion"]
    assert max(steps) >= 15
    nursery.succeeds(resumed, root)
    return Survived(1, 1, audit(root))


def checkpoint_cut_off(nursery: Nursery, root: Path) -> Survived:
    """Half of a checkpoint is missing: Lightning refuses it, the record is untouched, the one before works."""
    nursery.succeeds(first, root)
    path = last_checkpoint(root)
    assert path is not None
    before = (root / "topology" / MEASUREMENTS).read_bytes()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert nursery.run(resumed, root) != 0
    assert (root / "topology" / MEASUREMENTS).read_bytes() == before
    path.unlink()
    nursery.succeeds(resumed, root)
    return Survived(1, 1, audit(root))


def state_damaged(nursery: Nursery, root: Path, most: int = 9) -> Survived:
    """The monitor's state in a checkpoint is garbage: it begins again and reports that; the old record stays."""
    nursery.succeeds(with_gates, root / "whole")
    damages = range(len(DAMAGES))[-most:]
    for damage in damages:
        here = root / str(damage)
        shutil.copytree(root / "whole", here)
        before = (here / "topology" / MEASUREMENTS).read_bytes()
        nursery.succeeds(with_gates_and_damaged_states, here, damage)
        assert (here / "topology" / MEASUREMENTS).read_bytes() == before
        record = read_record(here / "topology-v1")
        assert record.events[0].name == "gap", record.events
        assert "cannot be used" in record.events[0].message
        audit(here)
    return Survived(len(damages), len(damages), 0)


def two_experiments(nursery: Nursery, root: Path) -> Survived:
    """Two experiments begin from one checkpoint at once: each has its own record, the first run's is untouched."""
    nursery.succeeds(first, root / "origin")
    checkpoint, lines = last_checkpoint(root / "origin"), root / "origin" / "topology" / MEASUREMENTS
    assert checkpoint is not None
    before = lines.read_bytes()
    processes = {name: nursery.start(begun_from, root / name, checkpoint, 24) for name in ("one", "other")}
    for name, process in processes.items():
        process.join(120)
        assert process.exitcode == 0, said(root / name)
    assert lines.read_bytes() == before
    ids = {read_record(root / name / "topology").run_id for name in ("origin", "one", "other")}
    assert len(ids) == 3
    return Survived(2, 2, sum(audit(root / name) for name in ("one", "other")))


def rolled_back(nursery: Nursery, root: Path) -> Survived:
    """A run resumes from a checkpoint before its end: later lines are abandoned, and an event reports it."""
    nursery.succeeds(first, root, 20)
    checkpoint = root / CHECKPOINTS / "step=12.ckpt"
    nursery.succeeds(begun_from, root, checkpoint, 16)
    record = read_record(root / "topology")
    assert [event.step for event in record.events if event.name == "rewind"] == [12]
    assert max(m.step for m in record.measurements) == 16
    return Survived(1, 1, audit(root, destroyed=frozenset(key for key in published(root) if key[1] > 16)))


def record_cut_off(nursery: Nursery, root: Path) -> Survived:
    """Half of a record is gone, cut in the middle of a line; the run goes on with the rest."""
    nursery.succeeds(first, root)
    path = root / "topology" / MEASUREMENTS
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2 - 7])
    left = path.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1
    gone = [json.loads(line) for line in text.splitlines()[left:]]
    destroyed = frozenset(("topology", line["step"], line["probe"], line["group"]) for line in gone)
    nursery.succeeds(resumed, root)
    record = read_record(root / "topology")
    assert record.n_unreadable == 0
    return Survived(1, 1, audit(root, destroyed=destroyed))


GARBAGE = [
    b"\x00" * 5000 + b"\n",
    bytes(range(11, 256)) * 20 + b"\n",
    b"[" * 100_000 + b"\n",
    b'{"step": ' + b"9" * 4000 + b', "epoch": 0, "probe": "p", "group": "", "v": 1}\n',
    b'{"step": 3, "epoch": 0, "probe": "p", "group": "", "v": ' + b"9" * 4000 + b"}\n",
    b'{"step": 3, "epoch": 0, "probe": ["p"], "group": {}, "v": 1}\n',
    b'{"step": true, "epoch": 0, "probe": "p", "group": "", "v": 1}\n',
    b'{"name": "gap", "step": "<b>", "epoch": 0, "group": 1, "severity": "info", "value": 0, "threshold": 0}\n',
    b'"' + b"x" * 5_000_000 + b'"\n',
    b'{"step": 1, "epo',
]


def garbage_lines(nursery: Nursery, root: Path) -> Survived:
    """Both files hold garbage lines: they are counted, not read, and the run writes on after them."""
    nursery.succeeds(first, root)
    for name in (MEASUREMENTS, EVENTS):
        with (root / "topology" / name).open("ab") as file:
            file.writelines(GARBAGE)
    opens(read_record(root / "topology"))
    (root / "topology" / "diagrams" / "step-garbage.npz").write_bytes(b"garbage")
    (root / "topology" / "diagrams" / "step-000000001.npz").write_bytes(b"garbage")
    nursery.succeeds(resumed, root)
    assert read_record(root / "topology").n_unreadable == 2 * (len(GARBAGE) - 1)
    return Survived(2 * len(GARBAGE) + 2, 2 * len(GARBAGE) + 2, audit(root))


def other_ranks(nursery: Nursery, root: Path, most: int = 2) -> Survived:
    """A run of two processes is resumed as one, and a run of one as two."""
    changes, lost = ((2, 1), (1, 2))[:most], 0
    for before, after in changes:
        here = root / f"{before}to{after}"
        nursery.succeeds(on_ranks, here, 12, before)
        nursery.succeeds(on_ranks, here, 24, after)
        steps = {step for _, step, probe, _ in published(here) if probe == "distortion"}
        assert steps == set(range(1, 25))
        assert not (here / "topology-v1").exists()
        lost += audit(here)
    return Survived(len(changes), len(changes), lost)


def no_orphan(nursery: Nursery, root: Path, most: int = 5) -> Survived:
    """Training ends, in five ways, during a worker's long computation: the worker ends too."""
    ends = ("SIGKILL", "success", "exception", "interrupt", "SIGTERM")[:most]
    for end in ends:
        status = nursery.run(computing_elsewhere, root / end, end)
        assert (status == 0) == (end == "success"), f"{end}: {status}\n{said(root / end)}"
        pid = int((root / end / "worker").read_text())
        deadline = time.monotonic() + 5.0
        while _runs(pid):
            assert time.monotonic() < deadline, f"the worker outlived {end}"
            time.sleep(0.02)
    return Survived(len(ends), len(ends), 0)


CASES: dict[str, Callable[..., Survived]] = {
    "kill -9 at random moments": killed,
    "disk full": disk_full,
    "a file in the folder's place": file_in_the_way,
    "a logger that raises": logger_raises,
    "NaN loss": nan_loss,
    "checkpoint cut off": checkpoint_cut_off,
    "checkpoint's state damaged": state_damaged,
    "two experiments from one checkpoint": two_experiments,
    "rolled back": rolled_back,
    "record cut off": record_cut_off,
    "garbage lines and files": garbage_lines,
    "clock jumps": clock_jumps,
    "SIGTERM": sigterm,
    "resumed on other ranks": other_ranks,
    "ends while the worker computes": no_orphan,
    **FOLDER_CASES,
}


def _runs(pid: int) -> bool:
    try:
        return "\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _told(root: Path) -> int:
    return len(list((root / PUBLISHED).glob("??????")))
