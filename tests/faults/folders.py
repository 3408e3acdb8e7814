"""More faults: whose folder it is, and what becomes of a folder or a disk while it is written."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from lightning_topo import TopologyMonitor
from lightning_topo.outputs.record import MEASUREMENTS, read_record
from lightning_topo.outputs.record import _jsonl as jsonl
from lightning_topo.outputs.record import _output as output
from tests.faults.audit import audit, published
from tests.faults.hostile import survey
from tests.faults.nursery import Nursery, said
from tests.faults.survived import Survived
from tests.faults.training import CHECKPOINTS, At, last_checkpoint, probes, train

# --- what the processes do --------------------------------------------------------------------------------------------


def begun(root: Path, max_steps: int, checkpoint: Path | None = None, home: Path | None = None) -> None:
    """Train into `home`, from a checkpoint or anew."""
    folder = None if home is None else home / "topology"
    monitor = TopologyMonitor(probes(), dirpath=folder, verbose=False, max_overhead=None, report=False)
    assert train(root, max_steps, checkpoint=checkpoint, monitor=monitor).global_step == max_steps


def waiting_at(root: Path, max_steps: int, step: int, home: Path, other: Path) -> None:
    """Train into `home`, and wait at a step until the other process is there too, or has died."""

    def meet(_: L.Trainer) -> None:
        (root / "here").touch()
        patience = time.monotonic() + 60.0
        while not (other / "here").exists():
            assert time.monotonic() < patience
            time.sleep(0.01)

    monitor = TopologyMonitor(probes(), dirpath=home / "topology", verbose=False, max_overhead=None, report=False)
    train(root, max_steps, monitor=monitor, callbacks=[At({step: meet})])


def dying_at(root: Path, max_steps: int, step: int, home: Path, other: Path) -> None:
    """Train into `home`, and die where the other process waits."""

    def die(_: L.Trainer) -> None:
        (root / "here").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    monitor = TopologyMonitor(probes(), dirpath=home / "topology", verbose=False, max_overhead=None, report=False)
    train(root, max_steps, monitor=monitor, callbacks=[At({step: die})])


def told(messages: list[str]) -> Callable[[str], None]:
    """The record says what is wrong into this list."""
    output.warn = messages.append
    return messages.append


def losing_its_folder(root: Path, how: str) -> None:
    """The folder goes at step 12, and the record says how many lines went with it."""
    messages: list[str] = []
    told(messages)
    folder = root / "topology"

    def lose(_: L.Trainer) -> None:
        match how:
            case "deleted":
                shutil.rmtree(folder)
            case "moved":
                folder.rename(root / "elsewhere")
            case "a file deleted":
                (folder / MEASUREMENTS).unlink()
            case "a file in its place":
                shutil.rmtree(folder)
                folder.write_text("x")

    monitor = TopologyMonitor(probes(), verbose=False, max_overhead=None)
    trainer = train(root, 24, monitor=monitor, callbacks=[At({12: lose})])
    assert trainer.global_step == 24
    assert any("lost" in event.message or "cannot be written" in event.message for event in monitor.events), messages
    assert any("lacks" in message for message in messages), messages


def with_no_room_to_the_end(root: Path) -> None:
    """From step 12 on no file may grow, to the end; what is missing is counted, and said."""
    messages: list[str] = []
    told(messages)

    def fill(_: L.Trainer) -> None:
        room = (root / "topology" / MEASUREMENTS).stat().st_size + 40
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    monitor = TopologyMonitor(probes(), verbose=False, max_overhead=None, report=False)
    trainer = train(root, 17, monitor=monitor, callbacks=[At({12: fill})])
    assert trainer.global_step == 17
    assert any("cannot be written" in event.message for event in monitor.events)
    (root / "lacks").write_text("\n".join(messages))


def on_a_slow_disk(root: Path) -> None:
    """Every line takes 20 ms to write."""
    write = jsonl.JsonLines._flush

    def slowly(self: jsonl.JsonLines) -> None:
        time.sleep(0.02)
        write(self)

    jsonl.JsonLines._flush = slowly
    assert train(root, 20).global_step == 20


def until_told_to_stop(root: Path, how: str) -> None:
    """A scheduler's signal, an interrupt or an error at step 15; the emergency checkpoint is asked for."""

    def stop(_: L.Trainer) -> None:
        (root / "told").touch()
        if how == "an error":
            raise RuntimeError("the training fails")
        os.kill(os.getpid(), getattr(signal, how))

    train(root, 10_000, report=True, callbacks=[At({15: stop}), OnExceptionCheckpoint(root, "emergency")])


# --- the cases --------------------------------------------------------------------------------------------------------


def branches(nursery: Nursery, root: Path, most: int = 6) -> Survived:
    """Six runs begin from another run's checkpoint: each names its parent, and none writes into its folder."""
    nursery.succeeds(begun, root / "A", 14)
    checkpoint = last_checkpoint(root / "A")
    assert checkpoint is not None
    before, parent = _bytes(root / "A" / "topology"), read_record(root / "A" / "topology").run_id
    ways = ("beside it", "after it", "longer")
    for way, steps in list(zip(ways, (18, 20, 30), strict=True))[:most]:
        nursery.succeeds(begun, root / way, steps, checkpoint)
        record = read_record(root / way / "topology")
        assert record.parent is not None
        assert (record.parent.run_id, record.parent.step) == (parent, 12)
    if most < 6:
        return Survived(most, most, sum(audit(root / way) for way in ways[:most]))
    nursery.succeeds(begun, root / "of a branch", 36, last_checkpoint(root / "longer"))
    grandchild = read_record(root / "of a branch" / "topology")
    assert grandchild.parent is not None
    assert grandchild.parent.run_id == read_record(root / "longer" / "topology").run_id
    assert min(m.step for m in grandchild.history) <= 1
    nursery.succeeds(begun, root / "in its folder", 18, None, root / "A")  # begun anew where a record stands
    assert _bytes(root / "A" / "topology") == before
    shutil.rmtree(root / "A" / "topology")
    nursery.succeeds(begun, root / "of one that is gone", 18, checkpoint)
    lost = sum(audit(root / way) for way in (*ways, "of a branch", "of one that is gone"))
    lost += audit(root / "in its folder", home=root / "A")
    return Survived(6, 6, lost)


def rewinds(nursery: Nursery, root: Path, most: int = 6) -> Survived:
    """Six runs are rewound: later lines of the record are abandoned, once, and no reader counts them."""
    nursery.succeeds(begun, root / "first", 20)
    runs, lost = [[(12, 16)], [(12, 26)], [(18, 19)], [(18, 30)], [(12, 16), (12, 22)]][:most], 0
    for k, steps in enumerate(runs):
        here = root / str(k)
        shutil.copytree(root / "first", here)
        checkpoints = root / f"checkpoints-{k}"
        shutil.copytree(here / CHECKPOINTS, checkpoints)
        for back, end in steps:
            nursery.succeeds(begun, here, end, checkpoints / f"step={back}.ckpt")
        record = read_record(here / "topology")
        assert [event.step for event in record.events if event.name == "rewind"] == [back for back, _ in steps]
        assert max(m.step for m in record.measurements) == steps[-1][1]
        lost += audit(here, destroyed=frozenset(key for key in published(here) if key[1] > steps[-1][1]))
    n_rewinds = sum(map(len, runs))
    return Survived(n_rewinds, n_rewinds, lost)


def two_writers(nursery: Nursery, root: Path, most: int = 4) -> Survived:
    """Two trainings share one folder: both alive, one killed and resumed, and a third after them."""
    home = root / "home"
    both = [nursery.start(waiting_at, root / n, 14, 5, home, root / o) for n, o in (("a", "b"), ("b", "a"))]
    for process in both:
        process.join(120)
        assert process.exitcode == 0, said(root / "a") + said(root / "b")
    lost = audit(root / "a", home=home) + audit(root / "b", home=home)
    assert {key[0] for name in "ab" for key in published(root / name)} == {"topology", "topology-v1"}
    if most < 4:
        return Survived(2, 2, lost)
    home = root / "other home"
    dies = nursery.start(dying_at, root / "c", 14, 9, home, root / "d")
    lives = nursery.start(waiting_at, root / "d", 14, 9, home, root / "c")
    for process in (dies, lives):
        process.join(120)
    assert (dies.exitcode, lives.exitcode) == (-signal.SIGKILL, 0), said(root / "d")
    nursery.succeeds(begun, root / "c", 20, last_checkpoint(root / "c"), home)
    nursery.succeeds(begun, root / "e", 8, None, home)
    lost += audit(root / "c", n_kills=1, home=home)
    lost += audit(root / "d", home=home) + audit(root / "e", home=home)
    assert {path.name for path in home.iterdir()} == {"topology", "topology-v1", "topology-v2"}
    return Survived(4, 4, lost)


def folder_gone(nursery: Nursery, root: Path, most: int = 4) -> Survived:
    """The folder is deleted, moved, emptied, or replaced by a file: lost lines are counted and reported."""
    ways = ("deleted", "a file in its place", "moved", "a file deleted")[:most]
    lost = 0
    for way in ways:
        nursery.succeeds(losing_its_folder, root / way, way)
        gone = 24 if way == "a file in its place" else 12
        if gone == 12:
            destroyed = frozenset(key for key in published(root / way) if key[1] <= gone)
            lost += audit(root / way, destroyed=destroyed)
    return Survived(len(ways), len(ways), lost)


def disk_full_to_the_end(nursery: Nursery, root: Path) -> Survived:
    """The disk is full from step 12 to the end: training goes on, and missing lines are counted."""
    nursery.succeeds(with_no_room_to_the_end, root)
    record = read_record(root / "topology")
    held = {(m.step, m.probe, m.group) for m in record.measurements}
    missing = [key for key in published(root) if key[1:] not in held]
    said_so = (root / "lacks").read_text()
    found = [int(word.replace(",", "")) for word in said_so.split() if word.replace(",", "").isdigit()]
    assert missing
    return Survived(1, 1, 0 if found and max(found) >= len(missing) else len(missing))


def slow_disk(nursery: Nursery, root: Path) -> Survived:
    """The disk takes 20 ms a line."""
    nursery.succeeds(on_a_slow_disk, root)
    return Survived(1, 1, audit(root))


def grace_of_five_seconds(nursery: Nursery, root: Path, most: int = 3) -> Survived:
    """Training is killed five seconds after a signal or an error: the emergency checkpoint and the page are there."""
    ways = ("SIGTERM", "SIGINT", "an error")[:most]
    lost = 0
    for way in ways:
        here = root / way
        process = nursery.start(until_told_to_stop, here, way)
        patience = time.monotonic() + 60.0
        while not (here / "told").exists():
            assert time.monotonic() < patience, said(here)
            time.sleep(0.01)
        process.join(5.0)
        process.kill()
        process.join()
        assert (here / "emergency.ckpt").is_file(), f"{way}: {said(here)}"
        while not (here / "topology" / "report.html").is_file():
            assert time.monotonic() < patience
            time.sleep(0.05)
        lost += audit(here)
    return Survived(len(ways), len(ways), lost)


def hostile_records(nursery: Nursery, root: Path, records: int = 200) -> Survived:
    """Records that no training can write: each is read within 10 s and 1 GB, or refused."""
    root.mkdir(exist_ok=True)
    found = survey(root, range(records))
    bad = [(seed, kinds, cost) for seed, kinds, cost in found if not cost.is_survived]
    assert not bad, bad
    return Survived(len(found), len(found), 0)


FOLDER_CASES: dict[str, Callable[..., Survived]] = {
    "branches": branches,
    "rewinds": rewinds,
    "two writers of a folder": two_writers,
    "the folder is gone": folder_gone,
    "disk full to the end": disk_full_to_the_end,
    "slow disk": slow_disk,
    "five seconds from signal to kill": grace_of_five_seconds,
    "hostile records": hostile_records,
}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
