"""Whether the tests notice faults: small faults are put into the engine, the outputs and the callbacks, one at a time.

    python -m benchmarks.mutants [--count 60] [--seed 0] [--only watch/coverage]     # runs what was not run yet
    python -m benchmarks.mutants --again           # and once more those that survived, against the tests of today
    python -m benchmarks.mutants --list            # the table, from the data file; runs nothing

A fault flips a comparison, negates a condition, exchanges `and` and `or`, `min` and `max`, moves a number by one, or
leaves out a call. Sixty are drawn with a fixed seed, a file first and then a place in it. Each runs in a copy of the
repository against the tests that could see it, nearest first: the file's doctests, the test file of its name or those
in `CLOSEST`, test files that import it, `NEARBY`, and those of its folder. The first failure ends it; that test must
pass without the fault. A fault is *caught* by a failure, or where tests hang that do not hang without it; it *survived*
where all tests pass, or none failed within `LIMIT` seconds of computing. Data file: docs/data/mutants.jsonl. Stop and
go on at any time.
"""

import argparse
import ast
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("_watch", "outputs", "callbacks")
DATA = ROOT / "docs" / "data" / "mutants.jsonl"
LIMIT = 60.0
"""Seconds of computing for the tests of one fault; asleep they may be `PATIENCE` times as long."""
PATIENCE = 8.0

NEARBY = {
    "_watch": ("tests/loops/test_plain.py", "tests/callbacks/test_monitor.py", "tests/callbacks/test_resume.py"),
    "callbacks": ("tests/callbacks/test_monitor.py", "tests/callbacks/test_everywhere.py"),
    "outputs/record": ("tests/notebook/test_views.py", "tests/callbacks/test_resume.py"),
    "outputs/page": ("tests/test_demo.py",),
    "outputs": ("tests/callbacks/test_monitor.py", "tests/callbacks/test_early_stopping.py"),
}
"""Tests of what a folder's files are for."""
CLOSEST = {
    "callbacks/_trial_look.py": ("tests/callbacks/test_lr_finder.py", "tests/callbacks/test_trial_batches.py"),
    "callbacks/_watched_optimizer.py": ("tests/callbacks/test_lr_finder.py", "tests/distributed/test_finder.py"),
    "outputs/_outputs.py": ("tests/outputs/test_outputs.py", "tests/outputs/test_gates.py"),
    "outputs/record/_layout.py": ("tests/outputs/record/test_strangers_folder.py",),
    "outputs/record/_network.py": ("tests/outputs/record/test_follow.py", "tests/outputs/page/test_verdict.py"),
    "outputs/record/_write.py": ("tests/outputs/record/test_write.py", "tests/outputs/record/test_branch.py"),
    "outputs/trackers/_drawing.py": ("tests/outputs/trackers/test_output.py", "tests/outputs/trackers/test_names.py"),
    "outputs/trackers/_tracker.py": ("tests/outputs/trackers/test_output.py", "tests/outputs/trackers/test_names.py"),
    "_watch/awaited.py": ("tests/callbacks/test_lag.py",),
    "_watch/budget.py": ("tests/watch/test_schedule.py", "tests/callbacks/test_monitor.py"),
    "_watch/certifying.py": ("tests/watch/test_coverage.py", "tests/loops/test_plain.py"),
    "_watch/losses.py": ("tests/loops/test_plain.py", "tests/callbacks/test_events_in_training.py"),
    "_watch/measuring.py": ("tests/callbacks/test_monitor.py",),
    "_watch/membership.py": ("tests/callbacks/test_unseen_steps.py", "tests/callbacks/test_everywhere.py"),
    "_watch/movements.py": ("tests/callbacks/test_unseen_steps.py",),
    "_watch/recording.py": ("tests/probes/test_step_edge.py", "tests/callbacks/test_stability_in_training.py"),
    "_watch/reference.py": ("tests/callbacks/test_resume.py",),
}
"""Test files that are about a file, beside the one of its name."""
WARM = ("torch", "lightning.pytorch", "hypothesis", "beartype", "jaxtyping", "scipy.optimize", "matplotlib.figure")
"""Imported once, before each run forks from here; nothing of the package itself."""

_FLIPPED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_EXCHANGED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: `start` to `end` of a file's text, replaced."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The file's text with the fault in it."""
        return text[: self.start] + self.new + text[self.end :]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The same for the same fault, wherever in its file it stands."""
        return self.file, self.kind, self.old, self.new


@dataclass(frozen=True, slots=True)
class Outcome:
    """How tests ended: `passed`, `failed` (`test` is the first that did), `hung` in a `test`, or `slow`: no end yet."""

    ended: str
    test: str = ""
    seconds: float = 0.0


def mutants_of(file: str, text: str) -> list[Mutant]:
    """All faults that can be put into a file.

    >>> for mutant in mutants_of("f.py", "if a < 2:\\n    go()\\n"):
    ...     print(mutant.kind, mutant.old, "->", mutant.new)
    condition a < 2 -> not (a < 2)
    comparison a < 2 -> a <= 2
    number 2 -> 3
    call go() -> pass
    """
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    encoded = text.encode()

    def at(line: int, column: int) -> int:
        return len(encoded[: starts[line - 1] + column].decode())  # the parser counts bytes

    found = []
    for node, kind, new in _faults(ast.parse(text)):
        start, end = at(node.lineno, node.col_offset), at(node.end_lineno or 0, node.end_col_offset or 0)
        old = text[start:end]
        found.append(Mutant(file, node.lineno, kind, start, end, old, new.replace("{old}", old)))
    return found


def _faults(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Each place, the kind of fault, and what to put there."""
    for node in _walk(tree):
        match node:
            case ast.If() | ast.While() | ast.IfExp():
                yield node.test, "condition", "not ({old})"
            case ast.Compare(left, [operator], [right]):
                flipped = ast.Compare(left, [_FLIPPED[type(operator)]()], [right])
                yield node, "comparison", ast.unparse(flipped)
            case ast.BoolOp(operator, values):
                exchanged = ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
                yield node, "boolean", f"({ast.unparse(exchanged)})"
            case ast.Call(ast.Name(name)) if name in _EXCHANGED:
                yield node.func, "exchange", _EXCHANGED[name]
            case ast.Expr(ast.Call()):
                yield node, "call", "pass"
            case ast.Constant(int(value)) if not isinstance(value, bool) and value <= 2:  # larger ones are tuned
                yield node, "number", str(value + 1)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs: no types, no imports for them, no assertions."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Subscript | ast.JoinedStr):  # mostly types, and texts
                continue
            yield child
            yield from _walk(child)


def drawn(count: int, seed: int, only: str = "") -> list[Mutant]:
    """Faults drawn at random: a file first, so that long ones do not get most, then one of its places."""
    package = ROOT / "lightning_topo"
    places: dict[str, list[Mutant]] = {}
    for name in PACKAGES:
        for path in sorted((package / name).rglob("*.py")):
            file = path.relative_to(package).as_posix()
            if only in file and (found := mutants_of(file, path.read_text())):
                places[file] = found
    generator, chosen = random.Random(seed), list[Mutant]()
    while len(chosen) < count and places:
        file = generator.choice(sorted(places))
        chosen.append(places[file].pop(generator.randrange(len(places[file]))))
        if not places[file]:
            del places[file]
    return chosen


def matching_tests(file: str) -> tuple[str, ...]:
    """The tests that could notice a fault in a file, nearest first."""
    path = Path(file)
    folder = ROOT.joinpath("tests", *(part.removeprefix("_") for part in path.parent.parts))
    dotted = f"lightning_topo.{'.'.join(path.with_suffix('').parts)}"
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [ROOT / "lightning_topo" / file] if ">>>" in (ROOT / "lightning_topo" / file).read_text() else []
    found += [test for test in every if test == folder / f"test_{path.stem.removeprefix('_')}.py"]
    found += [ROOT / test for test in CLOSEST.get(file, ())]
    found += [test for test in every if f"{dotted} " in test.read_text()]
    for name, nearby in NEARBY.items():
        if file.startswith(f"{name}/"):
            found += [ROOT / test for test in nearby]
    found += [test for test in every if test.parent == folder]
    return tuple(dict.fromkeys(test.relative_to(ROOT).as_posix() for test in found))


class _Progress:
    """The first test that failed, the test that runs, and since when by this process's clock."""

    def __init__(self) -> None:
        self.test, self.present, self.since = "", "", 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.present, self.since = nodeid, time.process_time()

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.failed and not self.test:
            self.test = report.nodeid

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed and not self.test:
            self.test = report.nodeid


def _in_child(copy: Path, tests: Sequence[str], told: Any) -> None:
    """Run tests in the copy; tell how they ended before another ends this process."""
    os.setsid()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    seen = _Progress()
    threading.Thread(target=_end_when_slow, args=(seen, told), daemon=True).start()
    options = ["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    status = pytest.main([*options, *tests], plugins=[seen])
    ended = "passed" if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else "failed"
    told.send(Outcome(ended, seen.test, time.process_time()))
    os._exit(0)


def _end_when_slow(seen: _Progress, told: Any) -> None:
    began = time.process_time()
    while time.process_time() - began < LIMIT:
        time.sleep(0.2)
    hangs = time.process_time() - seen.since > LIMIT / 2
    told.send(Outcome("hung" if hangs else "slow", seen.present if hangs else "", LIMIT))
    os._exit(0)


def outcome_of(copy: Path, tests: Sequence[str]) -> Outcome:
    """How tests end in a copy, run in a process of their own."""
    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(copy, tests, told))
    process.start()
    told.close()
    try:
        found = heard.recv() if heard.poll(LIMIT * PATIENCE) else Outcome("hung", "", LIMIT * PATIENCE)
    except EOFError:
        found = Outcome("failed", "(the process of the tests died)")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # it, and what it has started
        process.join()
    return found


def copied(folder: Path) -> Path:
    """A copy of what the tests need."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("lightning_topo", "tests", "benchmarks", "examples", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "mkdocs.yml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def verdict(copy: Path, mutant: Mutant, tests: Sequence[str], number: int) -> Outcome:
    """`caught` or `survived`, with the test that caught it; `unjudged` where that test fails without the fault, too."""
    path = copy / "lightning_topo" / mutant.file
    text, born = path.read_text(), path.stat().st_mtime
    path.write_text(mutant.applied(text))
    os.utime(path, (born, born + number))  # another second: what was compiled of it is compiled anew
    try:
        found = outcome_of(copy, tests)
    finally:
        path.write_text(text)
        os.utime(path, (born, born))
    if found.ended in ("passed", "slow"):
        return replace(found, ended="survived")
    without = outcome_of(copy, [found.test] if found.test and "(" not in found.test else tests)
    if found.ended == "failed":
        return replace(found, ended="caught" if without.ended == "passed" else "unjudged")
    return replace(found, ended="survived" if without.ended == "hung" else "caught")


def run(mutants: Sequence[Mutant], known: dict[tuple[str, ...], dict[str, Any]], *, again: bool) -> None:
    """Run those that are not known yet, and keep what came of them."""
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for number, mutant in enumerate(mutants, 1):
            before = known.get(mutant.key, {}).get("verdict")
            if before == "caught" or (before == "survived" and not again):
                continue
            tests = matching_tests(mutant.file)
            found = verdict(copy, mutant, tests, number)
            place = {"file": mutant.file, "line": mutant.line, "kind": mutant.kind, "old": mutant.old}
            how = {"verdict": found.ended, "by": found.test, "seconds": round(found.seconds, 1)}
            known[mutant.key] = {**place, "new": mutant.new, **how}
            DATA.write_text("".join(json.dumps(line) + "\n" for line in known.values()))
            print(row(known[mutant.key]), flush=True)


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    old, new = (" ".join(found[name].split())[:60] for name in ("old", "new"))
    return f"{found['verdict']:8} {found['file']}:{found['line']} {found['kind']}: {old}  ->  {new}  {found['by']}"


def main() -> None:
    """Draw, run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", default="", help="in files whose path below the package contains this")
    parser.add_argument("--again", action="store_true", help="run those that survived once more")
    parser.add_argument("--list", action="store_true", help="show what is known; run nothing")
    chosen = parser.parse_args()
    lines = map(json.loads, DATA.read_text().splitlines() if DATA.is_file() else ())
    known = {(line["file"], line["kind"], line["old"], line["new"]): line for line in lines}
    mutants = drawn(chosen.count, chosen.seed, chosen.only)
    if not chosen.list:
        run(mutants, known, again=chosen.again)
    print()
    for found in known.values():
        print(row(found))
    verdicts = [found["verdict"] for found in known.values()]
    caught, survived = verdicts.count("caught"), verdicts.count("survived")
    share = f" ({100 * caught / (caught + survived):.0f} %)" if caught + survived else ""
    print(f"\n{caught} caught, {survived} survived{share}, {sum(m.key not in known for m in mutants)} not run.")


if __name__ == "__main__":
    main()
