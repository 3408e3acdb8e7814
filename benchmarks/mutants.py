"""Whether the tests notice faults: small faults are put into the engine, the outputs and the callbacks, one at a time.

    python -m benchmarks.mutants [--count 60] [--seed 0] [--only watch/coverage] [--list]

A fault flips a comparison, negates a condition, exchanges `and` and `or`, `min` and `max`, moves a number by one, or
leaves out a call. Sixty are drawn with a fixed seed, a file first and then a place in it. Each is run in a copy of the
repository, against the tests of its file where there are any (`watch/coverage.py`: `tests/watch/test_coverage.py`; of a
file below `outputs`, its folder's), else against `tests/callbacks`, and the file's own doctests. A fault is caught if a
test fails or hangs. What has been run is kept in build/mutants.jsonl and not run again: stop it and go on as you like.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("watch", "outputs", "callbacks")
RESULTS = ROOT / "build" / "mutants.jsonl"
LEAST_SECONDS = 60.0
TIMES = 4.0
"""Tests that take so many times as long as without the fault hang."""

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

    def key(self, text: str) -> str:
        """The same for the same fault in the same text."""
        return hashlib.sha256(repr((self.file, self.start, self.new, text)).encode()).hexdigest()[:16]


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


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that are to notice a fault in a file."""
    path = Path(file)
    folder = Path("tests") / path.parent
    mirrored = folder / f"test_{path.stem}.py"
    if (ROOT / mirrored).is_file():
        return (mirrored.as_posix(), f"lightning_topo/{file}")
    if path.parts[0] == "outputs" and (beside := sorted((ROOT / folder).glob("test_*.py"))):
        return (*(test.relative_to(ROOT).as_posix() for test in beside), f"lightning_topo/{file}")
    return ("tests/callbacks", f"lightning_topo/{file}")


def seconds_of(copy: Path, tests: Sequence[str], most_seconds: float) -> tuple[str, float]:
    """Whether the tests "pass", "fail" or "hang" in a copy, and how long that took."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not browser", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = process.wait(most_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "hang", time.monotonic() - began
    return "pass" if status == 0 else "fail", time.monotonic() - began


def copied(folder: Path) -> Path:
    """A copy of what the tests need."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("lightning_topo", "tests", "benchmarks", "examples", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(mutants: Sequence[Mutant], known: dict[str, dict], most_seconds: float) -> None:
    """Run those that are not known yet, and keep what came of them."""
    usual: dict[tuple[str, ...], float] = {}
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, RESULTS.open("a") as results:
        copy = copied(Path(folder))
        for mutant in mutants:
            path = copy / "lightning_topo" / mutant.file
            text, tests = path.read_text(), tests_of(mutant.file)
            if mutant.key(text) in known:
                continue
            if tests not in usual:
                outcome, usual[tests] = seconds_of(copy, tests, most_seconds)
                if outcome != "pass":
                    print(f"{mutant.file}: left out, as {' '.join(tests)} {outcome}s without any fault", flush=True)
                    usual[tests] = 0.0
            if not usual[tests]:
                continue
            path.write_text(mutant.applied(text))
            try:
                outcome, seconds = seconds_of(copy, tests, max(LEAST_SECONDS, TIMES * usual[tests]))
            finally:
                path.write_text(text)
            found = {"key": mutant.key(text), **asdict(mutant), "outcome": outcome, "seconds": round(seconds, 1)}
            known[found["key"]] = found
            results.write(json.dumps(found) + "\n")
            results.flush()
            print(line_of(mutant, outcome), flush=True)


def line_of(mutant: Mutant, outcome: str) -> str:
    """A line of the table."""
    verdict = {"pass": "SURVIVED", "fail": "caught", "hang": "caught"}.get(outcome, "not run")
    old, new = (" ".join(text.split())[:60] for text in (mutant.old, mutant.new))
    return f"{verdict:8} {mutant.file}:{mutant.line} {mutant.kind}: {old}  ->  {new}"


def main() -> None:
    """Draw, run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", default="", help="in files whose path below the package contains this")
    parser.add_argument("--list", action="store_true", help="show them and what is known of them; run nothing")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for tests without a fault")
    arguments = parser.parse_args()
    mutants = drawn(arguments.count, arguments.seed, arguments.only)
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    known = {found["key"]: found for found in map(json.loads, lines)}
    if not arguments.list:
        run(mutants, known, arguments.timeout)
    texts = {mutant.file: (ROOT / "lightning_topo" / mutant.file).read_text() for mutant in mutants}
    outcomes = [known.get(mutant.key(texts[mutant.file]), {}).get("outcome", "") for mutant in mutants]
    print()
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        print(line_of(mutant, outcome))
    caught, survived = len([o for o in outcomes if o in ("fail", "hang")]), outcomes.count("pass")
    share = f" ({100 * caught / (caught + survived):.0f} %)" if caught + survived else ""
    print(f"\n{caught} caught, {survived} survived{share}, {len(mutants) - caught - survived} not run.")


if __name__ == "__main__":
    main()
