"""Faults that are put in are where they say, change what runs, and are drawn the same each time."""

import ast

from benchmarks.mutants import CLOSEST, NEARBY, ROOT, drawn, matching_tests, mutants_of

TEXT = '''"""Doc."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


def f(a: "int", b: int = 1) -> int:
    """η < 2 is no code."""
    η = max(a, b)
    if η < 2 and a is not None:
        print(f"{a < b}")
    assert a > 0
    return η if a in (1, 9) else min(a, 7)
'''


def test_every_fault_is_one_that_runs_and_stands_where_it_says():
    found = mutants_of("f.py", TEXT)
    for mutant in found:
        changed = mutant.applied(TEXT)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(TEXT))
        assert TEXT[mutant.start : mutant.end] == mutant.old
        assert mutant.old.splitlines()[0] in TEXT.splitlines()[mutant.line - 1]
    kinds = {(mutant.kind, mutant.old, mutant.new) for mutant in found}
    assert kinds == {
        ("exchange", "max", "min"),
        ("exchange", "min", "max"),
        ("condition", "η < 2 and a is not None", "not (η < 2 and a is not None)"),
        ("condition", "a in (1, 9)", "not (a in (1, 9))"),
        ("boolean", "η < 2 and a is not None", "(η < 2 or a is not None)"),
        ("comparison", "η < 2", "η <= 2"),
        ("comparison", "a is not None", "a is None"),
        ("comparison", "a in (1, 9)", "a not in (1, 9)"),
        ("number", "1", "2"),
        ("number", "2", "3"),
        ("call", 'print(f"{a < b}")', "pass"),
    }


def test_a_draw_is_the_same_again_and_begins_with_a_shorter_one():
    assert drawn(60, 0)[:20] == drawn(20, 0)
    assert drawn(20, 1) != drawn(20, 0)
    assert {mutant.file for mutant in drawn(5, 0, only="watch/published")} == {"_watch/published_values.py"}


def test_the_tests_that_could_see_a_fault_exist():
    assert all((ROOT / "lightning_topo" / file).is_file() for file in CLOSEST)
    for tests in (*CLOSEST.values(), *NEARBY.values()):
        assert all((ROOT / path).is_file() for path in tests)
    assert matching_tests("_watch/coverage.py")[:2] == (
        "lightning_topo/_watch/coverage.py",
        "tests/watch/test_coverage.py",
    )
