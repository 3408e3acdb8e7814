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


def test_what_has_no_underscore_is_public():
    package = ROOT / "lightning_topo"
    paths = [path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    open_names = {name for name in names if not any(part.startswith("_") for part in name.split("."))}
    assert open_names - {"lightning_topo"} == set(PUBLIC) - {"lightning_topo"}, "docs/reference-packages.md"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_package_is_shown_with_all_it_exports(name):
    import lightning_topo

    module = import_module(name)
    assert module.__doc__
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("reference*.md"))
    with_the_package = set(module.__all__) <= set(lightning_topo.__all__)
    assert with_the_package or re.search(rf"^::: {re.escape(name)}$", pages, flags=re.MULTILINE)
    for exported in module.__all__:
        assert not exported.startswith("_")
        thing = getattr(module, exported)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{exported} has no docstring"


def test_what_the_package_gives_comes_from_its_parts():
    import lightning_topo

    for name in lightning_topo.__all__:
        home = import_module(f"lightning_topo.{lightning_topo._HOME[name]}")
        assert getattr(home, name) is getattr(lightning_topo, name)
