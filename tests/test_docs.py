"""The site builds strictly and without a network, its examples run, and it speaks of all there is."""

import ast
import importlib
import math
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import lightning_topo
import lightning_topo.metrics
from lightning_topo.phases import EventName, PhaseRules
from lightning_topo.phases._rules import Band

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
LONG = {"recipes.md", "tutorial.md"}
"""Pages whose examples train for more than ten seconds."""


def python_blocks(text):
    """The fenced Python, also what is indented below a list."""
    found = re.findall(r"^ *```python\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for code in found]


def blocks_of(page):
    return python_blocks((DOCS / page).read_text())


def test_the_blocks_of_a_page_are_found():
    page = "text\n\n```python\na = 1\n```\n\n- item\n\n    ```python\n    if a:\n        b = 2\n    ```\n```bash\n```\n"
    assert python_blocks(page) == ["a = 1\n", "if a:\n    b = 2\n"]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in PAGES if blocks_of(page)],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "docs"}
    for number, code in enumerate(blocks_of(page), 1):
        exec(compile(code, f"{page}, block {number}", "exec"), namespace)


def test_every_event_has_a_section_that_says_what_it_means_how_it_is_detected_and_what_to_do():
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (DOCS / "events.md").read_text(), re.DOTALL | re.M))
    assert set(sections) == {str(name) for name in EventName}
    for name, section in sections.items():
        for part in ("*Severity*", "**Means.**", "**Detected.**", "**Do.**"):
            assert part in section, f"{name} lacks {part}"


def test_the_troubleshooting_page_has_every_event():
    page = (DOCS / "troubleshooting.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page.split("\n## Events\n")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert sorted(listed) == sorted(EventName)


def spoken(function):
    """The first words, up to the first value filled in, of each literal that the package hands to `function`."""
    for path in (ROOT / "lightning_topo").rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if f"{function}(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
                for argument in node.args[: 2 if function == "misconfigured" else 1]:
                    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
                    if isinstance(first, ast.Constant) and isinstance(first.value, str):
                        yield first.value


@pytest.mark.parametrize("function", ["misconfigured", "rank_zero_warn", "ProbeUnavailable"])
def test_the_troubleshooting_page_has_every_refusal_and_warning(function):
    """By the first words of its message."""
    page = re.sub(r"\s+", " ", (DOCS / "troubleshooting.md").read_text())
    literals = list(spoken(function))
    assert len(literals) >= 3
    missing = [words for words in literals if " ".join(words.split()[:4]).rstrip(".,:;") not in page]
    assert not missing


def test_the_rules_in_the_docs_are_those_in_force():
    table = re.findall(r"^\| `([\w.]+)` \| ([\d.]+) \|", (DOCS / "events.md").read_text(), flags=re.MULTILINE)
    assert len(table) >= 10
    for field, value in table:
        assert math.isclose(attrgetter(field)(PhaseRules()), float(value), rel_tol=1e-3), field
    bands = {name for name in PhaseRules.__dataclass_fields__ if isinstance(getattr(PhaseRules(), name), Band)}
    expected = PhaseRules.__dataclass_fields__.keys() - bands
    expected |= {f"{name}.{level}" for name in bands for level in ("enter", "leave")}
    assert expected <= {field for field, _ in table}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip('needs the extra: pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_navigation(site):
    home = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / page.replace(".md", ".html")).is_file()
        assert f'href="{page.replace(".md", ".html")}"' in home or page == "index.md", page


def test_no_page_loads_anything_from_elsewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//[^\"> ]+", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect)\"?[^>]+href=\"?(?:https?:)?//[^\"> ]+", text)
        loaded += re.findall(r"https://unpkg[^\"'> ]+", text)
        assert not loaded, f"{page.name}: {loaded}"


@pytest.mark.parametrize(
    ("page", "module"), [("reference.html", lightning_topo), ("reference-metrics.html", lightning_topo.metrics)]
)
def test_the_reference_shows_every_public_name(site, page, module):
    anchors = re.findall(r'id="(lightning_topo[\w.]*)"', (site / page).read_text())
    shown = {anchor.rpartition(".")[2] for anchor in anchors}
    assert set(module.__all__) - {"functional"} <= shown
    if module is lightning_topo.metrics:
        assert {"critical_ratio", "diagram_distance"} <= shown


def test_the_packages_that_are_public_are_shown_with_all_they_export(site):
    text = (DOCS / "reference-packages.md").read_text()
    pages = "".join((site / page).read_text() for page in ("reference.html", "reference-packages.html"))
    shown = set(re.findall(r'id="(lightning_topo[\w.]*)"', pages))
    packages = re.findall(r"^::: (lightning_topo[\w.]+)\n    options", text, flags=re.MULTILINE)
    assert len(packages) > 8
    for module in map(importlib.import_module, packages):
        exported = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        missing = [
            name
            for name, thing in exported.items()
            if callable(thing) and not {f"{module.__name__}.{name}", f"{thing.__module__}.{name}"} & shown
        ]
        assert not missing, f"{module.__name__}: {missing}"


def test_doctests_are_shown_as_code(site):
    reference = (site / "reference.html").read_text()
    assert "<blockquote>" not in reference
    assert re.search(r'<div class="highlight">(?:(?!</div>).)*&gt;&gt;&gt;', reference, flags=re.DOTALL)
