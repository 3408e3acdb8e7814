"""What holds for the repository as a whole: style, types, layers, and what the README says."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lightning_topo.quantities import QUANTITIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run(*command, cwd=ROOT, timeout=300):
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
    )


def tool(name):
    return str(Path(sys.executable).with_name(name))


SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for place in ("benchmarks", "examples") for path in ROOT.glob(f"{place}/**/*.py")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_takes_from_the_package_is_there(script):
    """Benchmarks run for hours, and seldom: they are not to fail in their first line when they do."""
    tree = ast.parse((ROOT / script).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lightning_topo"):
            continue
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            is_there = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}") is not None
            assert is_there, f"{script}:{node.lineno}: {node.module} has no {name}"


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("lint-imports",)],
    ids=["style", "format", "layers"],
)
def test_tools_find_nothing(command):
    done = run(tool(command[0]), *command[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def test_types():
    done = run(tool("pyright"), "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_tests_of_its_name():
    """Short ones may be tested by those that use them."""
    places = {}
    for module in sorted((ROOT / "lightning_topo").rglob("*.py")):
        folder = [part.lstrip("_") for part in module.relative_to(ROOT / "lightning_topo").parent.parts]
        if not module.stem.startswith("__") and module.read_text().count("\n") >= 50:
            places[module] = ROOT.joinpath("tests", *folder, f"test_{module.stem.lstrip('_')}.py")
    assert len(places) > 150
    assert [str(place.relative_to(ROOT)) for place in places.values() if not place.exists()] == []


def test_nothing_heavy_is_imported_before_it_is_used():
    """One process, from the lightest import to the heaviest."""
    code = """
        import sys

        def imported(*names):
            return [name for name in names if name in sys.modules]

        import lightning_topo
        assert not imported("torch", "lightning", "wandb", "gph", "gudhi", "sklearn", "matplotlib", "numpy")

        import numpy as np
        from lightning_topo._figures.captures import crocker
        from lightning_topo._figures.persistence import betti_figure, crocker_figure, diagram_figure
        from lightning_topo._figures.style import pixels
        captures = {0: (np.array([[0.0, 1.0]]),), 5: (np.array([[0.0, 2.0]]),)}
        curves = betti_figure(captures, "b"), crocker_figure(crocker(captures, 9), "c")
        figures = diagram_figure(captures[0], "a"), *curves
        assert all(pixels(figure).any() for figure in figures)
        assert not imported("matplotlib.pyplot")

        import lightning_topo.homology, lightning_topo.metrics
        from lightning_topo.homology._engines import ENGINES
        assert len(ENGINES) > 2 and not imported(*(engine.module for engine in ENGINES.values()))

        from lightning_topo import TopologyMonitor
        TopologyMonitor()
        assert not imported("wandb", "gph", "gudhi", "redzed_tda", "sklearn", "tensorboard", "mlflow")
    """
    done = run(sys.executable, "-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    import lightning_topo

    for name in lightning_topo.__all__:
        assert getattr(lightning_topo, name).__doc__, name
    assert set(lightning_topo.__all__) <= set(dir(lightning_topo))
    with pytest.raises(AttributeError, match="no attribute 'Topology'"):
        lightning_topo.Topology  # noqa: B018


def blocks(heading, language):
    """The fenced blocks of a language below a heading of the README."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


@pytest.mark.parametrize("heading", ["Quick start", "Run the tests"])
def test_the_readmes_commands_are_one_line_each(heading):
    line = blocks(heading, "bash")[0]
    assert line.count("\n") == 1
    assert "-c constraints.txt" in line


def test_the_readmes_python_runs_through_every_door(tmp_path, monkeypatch):
    """The snippets of "In your own training", in order, with what a reader has: a model, data, a loop's objects."""
    import torch
    from lightning.fabric import Fabric

    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    added = []
    namespace = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "batches": [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)],
        "loss_fn": torch.nn.functional.cross_entropy,
        "fabric": Fabric(accelerator="cpu", devices=1),
    }
    in_lightning, plain, fabric, transformers = blocks("In your own training", "python")
    exec(in_lightning, namespace)
    assert any(type(callback).__name__ == "TopologyMonitor" for callback in namespace["trainer"].callbacks)
    for block in (plain, fabric):
        exec(block, namespace)
        assert namespace["watch"].metrics["topology/critical_ratio"] < 1.0
    pytest.importorskip("transformers")
    arguments = SimpleNamespace(output_dir="hf")
    namespace["trainer"] = SimpleNamespace(add_callback=added.append, args=arguments, train=lambda: None)
    exec(transformers, namespace)
    assert [type(callback).__name__ for callback in added] == ["TopologyTrainerCallback"]


def test_the_readmes_library_runs():
    namespace = {}
    for block in blocks("As a library", "python"):
        exec(block, namespace)


def test_the_readme_comes_to_the_point():
    """What it decides, a picture, two commands, a snippet a door: before the reader has scrolled far."""
    head = README.split("\n## What it costs\n")[0]
    assert head.count("\n") < 80
    for door in ("L.Trainer(", "TopologyWatch(model", "fabric.backward(", "TopologyTrainerCallback("):
        assert door in head
    assert len(blocks("Quick start", "bash")) == 2


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_docs_list_the_keys_that_are_published():
    keys = (ROOT / "docs" / "keys.md").read_text()
    for name, row in QUANTITIES.items():
        if row.published:
            assert re.search(rf"`[^`\n]*{re.sub('_k$', '_(k|0)', name)}`", keys), name


def test_the_constraints_hold_the_tested_set_and_the_environment_is_one():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement).group()
        assert name in pins, name


def test_the_changelog_speaks_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("lightning-topo") == version


def test_ci_runs_every_python_that_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tests = workflow["jobs"]["tests"]
    assert tests["strategy"]["matrix"]["python"] == named
    assert named[0] == project["requires-python"].removeprefix(">=")
    assert any(step.get("run") == ".ci/run" for step in tests["steps"])
    assert workflow["permissions"] == {"contents": "read"}


def test_ci_runs_the_readmes_command_with_another_python(tmp_path):
    """What `.ci/run` would run, with a stand-in for the shell that it hands the command to."""
    (tmp_path / "bash").write_text('#!/bin/sh\nfor last; do :; done\necho "$LIGHTNING_TOPO_BROWSER|$last"\n')
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    for name in ("bash", "chromium"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "python3.14"}
    done = subprocess.run(
        ["/bin/bash", str(ROOT / ".ci" / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [wanted] = [line for line in blocks("Run the tests", "bash")[0].splitlines() if line]
    assert done.stdout.splitlines()[-1] == "required|" + wanted.replace("python3.11", "python3.14")


def test_issue_forms_ask_for_what_helps():
    forms = {
        path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    }
    for name in ("bug", "neurons", "feature"):
        assert {"name", "description", "body"} <= set(forms[name])
        for part in forms[name]["body"]:
            assert part["type"] == "textarea"
            assert part["attributes"]["label"]
    assert {"script", "versions", "events"} <= {part["id"] for part in forms["bug"]["body"]}


def named_paths(page):
    """What stands between backticks and is a path of the repository, and the modules of its commands."""
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    top = "|".join(re.escape(path.name) for path in ROOT.iterdir())
    paths = {text for text in quoted if re.fullmatch(rf"({top})(/[\w./-]*)?", text)}
    modules = {
        f"{found.replace('.', '/')}"
        for found in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", "\n".join(quoted))
    }
    return paths, modules, {text for text in quoted if re.fullmatch(r"\w+\.py", text)}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_that_is_named_exists(page):
    paths, modules, files = named_paths(page)
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not [name for name in modules if not (ROOT / f"{name}.py").exists() and not (ROOT / name).is_dir()]
    known = {path.name for path in (ROOT / "lightning_topo").rglob("*.py")}
    assert not files - known


def test_the_map_of_the_code_names_every_package():
    listed = {path.rstrip("/") for path in named_paths("CONTRIBUTING.md")[0]}
    for path in (ROOT / "lightning_topo").iterdir():
        if path.name[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            assert f"lightning_topo/{path.name}" in listed, f"{path.name} is missing in the map of the code"


def test_a_newcomer_finds_most_places_from_names_alone():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| `(\S+)` \| (`\S+` )?\|$", text, flags=re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 26))
    hits = [number for number, _, _, guess in rows if not guess]
    assert len(hits) >= 20
    assert f"{len(hits)} of 25 are hits" in text


def test_the_installed_package_holds_its_assets():
    """Run outside the clone, so that the wheel is what is imported."""
    code = """
        from importlib.resources import files
        print([file.name for file in (files("lightning_topo") / "outputs" / "page" / "assets").iterdir()])
    """
    done = run(sys.executable, "-c", textwrap.dedent(code), cwd="/")
    assert "page.html" in done.stdout, done.stderr
