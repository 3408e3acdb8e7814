"""Records that nobody's training has written, from a seed: reading one takes little time and memory, or is refused.

    python -m tests.faults.hostile [--records 200] [--first 0]

Each is read as the page reads it and as a notebook does, in a separate process that is measured.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_SECONDS = 10.0
MOST_BYTES = 1e9
MEASUREMENTS, EVENTS = "measurements.jsonl", "events.jsonl"

Line = dict[str, Any]


def measurement(draw: random.Random, step: int, group: str = "net.0", **values: Any) -> Line:
    found = {"step": step, "epoch": 0, "probe": "distortion", "group": group, "reference_step": 0}
    return found | {"critical_ratio": draw.random(), "contraction": 0.9, "expansion": 1.1} | values


def lines_of(draw: random.Random, n: int = 200) -> list[Line]:
    return [measurement(draw, step, f"net.{step % 3}") for step in range(n)]


# --- what is wrong with the lines: each gives lines to add among the measurements -------------------------------------


def many_groups(draw: random.Random) -> list[Line]:
    return [measurement(draw, k, f"g{k}") for k in range(draw.choice([3_000, 12_000]))]


def long_names(draw: random.Random) -> list[Line]:
    return [
        measurement(draw, k, f"{k}" + draw.choice("ab\u202e層\x00") * draw.choice([900, 3_000])) for k in range(300)
    ]


def many_values(draw: random.Random) -> list[Line]:
    return [measurement(draw, k, **{f"v{i}": k * i for i in range(draw.choice([900, 1_500]))}) for k in range(300)]


def ever_new_values(draw: random.Random) -> list[Line]:
    return [measurement(draw, k, **{f"v{draw.random()}": 1.0 for _ in range(100)}) for k in range(500)]


def odd_numbers(draw: random.Random) -> list[Line]:
    odd = ["nan", "inf", "-inf", 1e308, -1e308, 5e-324, -1, 10**400, True, None, [], {}, "x", "1_0", "\u0661", 2**70]
    names = ("critical_ratio", "loss", "from", "state", "bound", "step", "epoch", "betti_0", "eta_lambda")
    probes = ("distortion", "training", "coverage", "persistence", "sharpness", "record", "rewind", "gate", "")
    return [
        measurement(draw, k) | {"probe": draw.choice(probes), draw.choice(names): draw.choice(odd)}
        for k in range(2_000)
    ]


def far_steps(draw: random.Random) -> list[Line]:
    return [measurement(draw, draw.choice([k, 2**53 - k, 2**60, k**5])) for k in range(1_000)]


def back_and_forth(draw: random.Random) -> list[Line]:
    return [measurement(draw, draw.randrange(50), f"g{k % 5}") for k in range(3_000)]


def rewinds(draw: random.Random) -> list[Line]:
    found = lines_of(draw, 3_000)
    for line in found[:: draw.choice([2, 7])]:
        line["probe"] = "rewind"
        line["step"] = draw.randrange(3_000)
    return found


def coverage(draw: random.Random) -> list[Line]:
    def line(k: int) -> Line:
        first, last = sorted((draw.randrange(10**6), draw.randrange(10**6)))
        values = {"from": draw.choice([first, last + 5, -1]), "state": draw.choice(["open", "exact", "bounded", "?"])}
        return {"step": last, "epoch": 0, "probe": "coverage", "group": f"g{k % 40}"} | values | {"bound": 0.5}

    return [line(k) for k in range(5_000)]


def flapping(draw: random.Random) -> list[Line]:
    return [measurement(draw, k // 50, f"g{k % 50}", critical_ratio=2.0 * (k // 550 % 2)) for k in range(20_000)]


def thinned(draw: random.Random) -> list[Line]:
    values = {"until_step": draw.choice([0, 10**9, 1e308, "inf"]), "factor": 10**6, "n_captures": -1}
    return [{"step": 0, "epoch": 0, "probe": "record", "group": "", **values}, *lines_of(draw)]


LINES: list[Callable[[random.Random], list[Line]]] = [
    many_groups, long_names, many_values, ever_new_values, odd_numbers, far_steps, back_and_forth, rewinds, coverage,
    flapping, thinned,
]  # fmt: skip


# --- what is wrong with the files -------------------------------------------------------------------------------------


def raw_lines(draw: random.Random, folder: Path) -> None:
    junk = [
        b"[" * 100_000, b'{"a":' * 50_000, b"\x00" * 10_000, b'"' + b"x" * 5_000_000 + b'"', b"\n" * 100_000,
        b'{"step": 1, "epo', draw.randbytes(20_000), b"{" + b",".join(b'"%d":1' % k for k in range(200_000)) + b"}",
        b'{"step": ' + b"9" * 5_000 + b"}",
    ]  # fmt: skip
    with (folder / draw.choice([MEASUREMENTS, EVENTS])).open("ab") as file:
        for _ in range(draw.randrange(1, 8)):
            file.write(draw.choice(junk) + draw.choice([b"\n", b""]))


def flipped(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice([MEASUREMENTS, EVENTS])
    text = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 200)):
        text[draw.randrange(len(text))] = draw.randrange(256)
    path.write_bytes(bytes(text))


def blank_lines(draw: random.Random, folder: Path) -> None:
    with (folder / MEASUREMENTS).open("ab") as file:
        file.write(b"\n" * 6_000_000)


def a_hole(draw: random.Random, folder: Path) -> None:
    os.truncate(folder / draw.choice([MEASUREMENTS, EVENTS]), draw.choice([1 << 28, 1 << 40]))


def events(draw: random.Random, folder: Path) -> None:
    names = ("gap", "topology_breakdown", "instability", "betti_changed", "rewind", "nonsense")
    message = "m" * draw.choice([10, 9_000])
    with (folder / EVENTS).open("a") as file:
        for k in range(4_000):
            line = {"name": draw.choice(names), "step": draw.randrange(9_000), "epoch": 0, "group": f"g{k % 60}"}
            line |= {"severity": draw.choice(["info", "warn", "error"]), "value": None, "threshold": None}
            file.write(json.dumps(line | {"message": f"{message}{k}", "remedy": "<b>" * 50}) + "\n")


def captures(draw: random.Random, folder: Path) -> None:
    (folder / "diagrams").mkdir(exist_ok=True)
    n = draw.choice([1_000, 400_000])
    bars = np.sort(np.random.default_rng(draw.randrange(9)).random((n, 2)), axis=1)
    bars[0, 1] = draw.choice([np.inf, np.nan, -1.0, 1e308])
    shape = {"n_points": n, "diameter": 1.0, "covering_radius": 0.0, "engine": "x", "exact": True}
    arrays = {f"net.{i}/H{k}": bars for i in range(3) for k in range(2)}
    first = folder / "diagrams" / "step-000000000.npz"
    np.savez(first, meta=np.array(json.dumps({f"net.{i}": shape for i in range(3)})), **arrays)
    for k in range(1, draw.choice([3, 40])):
        os.link(first, folder / "diagrams" / f"step-{k:09d}.npz")


def bombs(draw: random.Random, folder: Path) -> None:
    (folder / "diagrams").mkdir(exist_ok=True)
    header = b"\x93NUMPY\x01\x00v\x00" + (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, 2), }" % 10**12
    ).ljust(117)
    with zipfile.ZipFile(folder / "diagrams" / "step-000000001.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", bytes(1 << draw.choice([20, 28])))
        archive.writestr("net.0/H0.npy", header + b"\n" + bytes(160))
    for k in range(2, 300):
        (folder / "diagrams" / f"step-{k:09d}.npz").write_bytes(draw.randbytes(100))


def odd_files(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice([EVENTS, "diagrams", "history", "report.html"])
    if path.is_file():
        path.unlink()
    match draw.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(path)
        case 2:
            path.mkdir()
        case _:
            path.symlink_to("/dev/zero")


def many_captures(draw: random.Random, folder: Path) -> None:
    (folder / "diagrams").mkdir(exist_ok=True)
    for k in range(3_000):
        (folder / "diagrams" / f"step-{k:09d}.npz").touch()


FILES: list[Callable[[random.Random, Path], None]] = [
    raw_lines, flipped, blank_lines, a_hole, events, captures, bombs, odd_files, many_captures,
]  # fmt: skip


def write_hostile(folder: Path, seed: int) -> tuple[str, ...]:
    """A hostile record of this seed; what is wrong with it, by name."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    header: Line = {"schema": 1, "run_id": draw.choice(["a" * 32] * 12 + ["", "r" * 10**6, "</script>"])}
    if draw.random() < 0.2:
        header["parent"] = {"run_id": "p", "step": draw.choice([5, -1, 2**60, "x"])}
    kinds = draw.sample(LINES, draw.randrange(0, 3))
    lines = [line for kind in kinds for line in kind(draw)] or lines_of(draw)
    if draw.random() < 0.3:
        draw.shuffle(lines)
    for name, body in ((MEASUREMENTS, lines), (EVENTS, [])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in [header, *body]))
    spoilt = draw.sample(FILES, draw.randrange(0 if kinds else 1, 3))
    # Last: nothing else can be put into a pipe, a folder or a link without an end.
    spoilt.sort(key=lambda spoil: spoil is odd_files)
    for spoil in spoilt:
        try:
            spoil(draw, folder)
        except FileExistsError:  # another has put something there
            continue
    return tuple(kind.__name__ for kind in (*kinds, *spoilt))


# --- reading them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading took of a processor and of memory, and what came of it: "read", "refused: ...", or an error."""

    seconds: float
    peak_bytes: float
    outcome: str

    @property
    def is_survived(self) -> bool:
        """Whether it was cheap, and read or refused."""
        cheap = self.seconds < MOST_SECONDS and self.peak_bytes < MOST_BYTES
        return cheap and self.outcome.startswith(("read", "refused"))


def read_hostile(folder: Path, result: Path) -> None:
    """Read a record as the page and as a notebook do; what it took goes into a file."""
    from lightning_topo.outputs.page import render_page
    from lightning_topo.outputs.record import RecordFollower, read_record

    began, outcome = time.process_time(), "read"
    for read in (lambda: render_page([RecordFollower(folder).read()]), lambda: read_record(folder)):
        try:
            read()
        except (ValueError, OSError) as error:
            outcome = f"refused: {error}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    result.write_text(json.dumps([time.process_time() - began, peak, outcome[:300]]))


def survey(root: Path, seeds: range) -> list[tuple[int, tuple[str, ...], Cost]]:
    """Write and read the records of these seeds, one after the other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_topo.outputs.page"])
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=root) as place:
            kinds = write_hostile(Path(place) / "run", seed)
            process = context.Process(target=read_hostile, args=(Path(place) / "run", Path(place) / "result"))
            process.start()
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()
            try:
                cost = Cost(*json.loads((Path(place) / "result").read_text()))
            except OSError:
                cost = Cost(60.0, 0.0, f"died with {process.exitcode}")
            found.append((seed, kinds, cost))
    return found


def main() -> int:
    """Print a table; the exit status is the number of records that were neither read cheaply nor refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = survey(Path(folder), range(arguments.first, arguments.first + arguments.records))
    for seed, kinds, cost in found:
        if not cost.is_survived:
            print(f"seed {seed} ({', '.join(kinds)}): {cost}", file=sys.stderr)
    refused = [cost for _, _, cost in found if cost.outcome.startswith("refused")]
    survived = sum(cost.is_survived for _, _, cost in found)
    print("| hostile records | read | refused | most seconds | most MB |\n|---|---|---|---|---|")
    seconds, peak = max(c.seconds for _, _, c in found), max(c.peak_bytes for _, _, c in found)
    print(f"| {len(found)} | {survived - len(refused)} | {len(refused)} | {seconds:.1f} | {peak / 1e6:.0f} |")
    return len(found) - survived


if __name__ == "__main__":
    raise SystemExit(main())
