"""What may be imported is documented, and what is documented may be imported."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference-packages.md").read_text()
TABLE = re.findall(r"^\| (`.+?`) \|", PAGE, flags=re.MULTILINE)
PUBLIC = re.findall(r"`(lightning_topo[\w.]+)`", "\n".join(TABLE))
INTERNAL = re.findall(r"`(\w+)`", PAGE.split("Everything else")[1].split(")")[0])
ALONE = ("cli", "clock", "memory", "protection")
"""Modules of the package itself that are internal, too."""


def test_every_package_is_public_or_internal():
    children = {
        path.stem
        for path in (ROOT / "lightning_topo").iterdir()
        if path.name[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    public = {name.split(".")[1] for name in PUBLIC}
    listed = public | set(INTERNAL) | set(ALONE)
    assert children - listed == set(), "say in docs/reference-packages.md whether it is public"
    assert listed - {"lightning_topo"} - children == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_package_is_shown_with_all_it_exports(name):
    module = import_module(name)
    assert module.__doc__
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("reference*.md"))
    assert re.search(rf"^::: {re.escape(name)}$", pages, flags=re.MULTILINE)
    for exported in getattr(module, "__all__", ()):
        assert not exported.startswith("_")
        thing = getattr(module, exported)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{exported} has no docstring"


def test_what_the_package_gives_comes_from_its_parts():
    import lightning_topo

    for name in lightning_topo.__all__:
        home = import_module(f"lightning_topo.{lightning_topo._HOME[name]}")
        assert getattr(home, name) is getattr(lightning_topo, name)
