"""Plain English: constructions that were found, rewritten, and must not come back."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import lightning_topo
import lightning_topo.metrics

ROOT = Path(__file__).parent.parent

RIDDLES = (
    r"as a function of nothing",
    r"\bdoes here; where it fails\b",
    r"\bclosed: it has stopped to listen",
    r"What is done inside is the monitor's",
    r"\"Since the beginning\.",
    r"holds no more than a message between",
    r"unless the last capture stands",
    r"what no other process waits for",
    r"\bHave something to tell\b",
    r"seems to take less than no time",
    r"\band of which of them\b",
    r"Whether it is one at all",
    r"\bprocess of its own\b",
    r"what fails is reduced\b",
    r"Rows stand under\b",
    r"\b[Gg]uard and finder refuse\b",
    r"\b(merged|tore|torn)\b[^.]{0,30}\bstays? so\b",
    r"A value stands until the next",
    r"\bsmoothed phase\b.{0,30}\b(is|are) (none|a lie)\b",
    r"\b(is|are) only said\b",
    r"\b(is|are) made (of|from) them\b.{0,20}\bsaid\b",
    r"\b(is|are|was|were) (said|told) (once|twice|when|to no)\b",
    r"\bcounted and said\b|\babandoned, and said\b",
    r"Lightning's own rows stand",
    r"steps that lie behind",
    r"\bwhat lies behind\b",
    r"for whose sake",
    r"by the rules of (its|their) time",
    r"it is followed which",
    r"found by trying",
    r"in haste too\b",
    r"lies so nowhere",
    r"\bof all else the\b",
    r"that it is made of\b|\bthey are made of\b",
    r"made of (this|that) training",
    r"so that nothing can be said",
    r"\bgone on with\b",
    r"\bOf a cold start\b",
    r"\bbehind one face\b",
    r"\b(is|are) not to be had\b",
    r"\bwhat (the optimizer|this optimizer and learning rate) can bear\b",
)
"""The left column of the table of style and its kin, each as loosely as it can be without catching something else."""

TEXTS = sorted(
    path
    for pattern in (
        *("*.md", "docs/**/*.md", "docs/**/*.py"),
        *(f"lightning_topo/**/*.{kind}" for kind in ("py", "js", "css", "html")),
        *("examples/**/*.py", "benchmarks/**/*.py", "tests/**/*.py", "tests/**/*.js"),
    )
    for path in ROOT.glob(pattern)
    if not path.name.endswith(".min.js") and path != Path(__file__)
)
_JOIN = re.compile(r"""(["'`])\s*(?:\\|\+)?\s*[frbu]{0,2}\1""")
_BREAK = re.compile(r"(?:\s|#|//|/?\*+/?|\\n)+")


def one_line(text):
    """The text with its line breaks, comment marks and joined strings undone, so that a phrase is in one piece."""
    return _BREAK.sub(" ", _JOIN.sub("", text))


@pytest.fixture(scope="module")
def texts():
    return {str(path.relative_to(ROOT)): one_line(path.read_text()) for path in TEXTS}


@pytest.mark.parametrize(
    "text",
    [
        'log("phases are "\n    f"none")',
        '"phases are " + "none"',
        "`phases are ` +\n  `none`",
        "'phases ' \\\n 'are none'",
        "phases\n// are none",
        "/* phases\n * are none */",
        "# phases\n# are none",
        "phases are\\nnone",
    ],
)
def test_a_phrase_is_found_over_a_break(text):
    assert "phases are none" in one_line(text)


@pytest.mark.parametrize("riddle", RIDDLES)
def test_no_text_speaks_in_riddles(riddle, texts):
    assert len(texts) == len(TEXTS) > 500
    assert {Path(name).suffix for name in texts} >= {".py", ".md", ".js", ".css", ".html"}
    assert not [name for name, text in texts.items() if re.search(riddle, text)]


def exported():
    """Every class and function that a public package exports, with the members of the classes."""
    pages = (ROOT / "docs" / "reference-packages.md").read_text()
    modules = [lightning_topo, lightning_topo.metrics]
    modules += map(importlib.import_module, re.findall(r"^::: (lightning_topo[\w.]+)\n    options", pages, flags=re.M))
    things = {id(thing): thing for m in modules for n in getattr(m, "__all__", ()) if callable(thing := getattr(m, n))}
    for thing in things.values():
        yield f"{thing.__module__}.{thing.__qualname__}", thing
        for name, member in vars(thing).items() if inspect.isclass(thing) else ():
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function) and not name.startswith(("_", "on_")):
                yield f"{thing.__module__}.{thing.__qualname__}.{name}", function


def test_public_docstrings_begin_with_the_thing_or_with_a_verb():
    """A sentence that begins with "What" or "Of" is read twice."""
    riddles = {"What", "Of", "From", "To", "Where", "Those", "By", "In", "As", "For", "Has"}
    first = {name: (inspect.getdoc(thing) or "").split(" ")[0] for name, thing in exported()}
    assert len(first) > 200
    assert not {name for name, word in first.items() if word in riddles}
