"""What a user gets: the wheel and the sdist, installed where nothing else of the clone is, typed."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import lightning_topo
from lightning_topo import geometry, homology, metrics, neurons, phases, probes, stability
from tests import warm

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from the sources as they stand."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip('needs the extra: pip install ".[dev]"')
    folder = tmp_path_factory.mktemp("dist")
    # The folder's name is not that of the module, which a folder named build/ in the clone would hide.
    done = run(sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A Python that has our wheel, and the dependencies of this one, and no clone."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(packages)
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def clean_environment(python):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{kept['PATH']}"}


def test_the_wheel_holds_the_package_its_types_its_assets_and_the_licences_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_topo").rglob("*.py")}
    assert sources <= set(names)
    assert {"lightning_topo/py.typed", "lightning_topo/outputs/page/assets/page.html"} <= set(names)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert [name for name in names if name.endswith("plotly.LICENSE") and "licenses" in name]
    others = [name for name in names if not re.match(r"lightning_topo(-[\d.]+\.dist-info)?/", name)]
    assert not others
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_sdist_builds_the_same_and_holds_no_junk(built):
    with tarfile.open(built[1]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    tracked = set(run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines())
    if tracked:
        assert set(names) - tracked <= {"PKG-INFO"}
    needed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "mkdocs.yml"}
    assert needed | {"lightning_topo/py.typed", "tests/test_package.py"} <= set(names)


def test_every_public_name_and_the_command_work_from_the_wheel(built, installed, tmp_path):
    code = """
        import lightning_topo, lightning_topo.metrics
        for module in (lightning_topo, lightning_topo.metrics):
            for name in module.__all__:
                getattr(module, name)
        print(lightning_topo.__file__)
        from lightning_topo._cli import main
        raise SystemExit(main(["demo", "--steps", "12"]))
    """
    environment = clean_environment(installed)
    done = run(str(installed), "-c", textwrap.dedent(code), cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed.parent.parent)
    assert "Open in a browser" in done.stdout
    script = zipfile.ZipFile(built[0]).read("lightning_topo-" + PROJECT["version"] + ".dist-info/entry_points.txt")
    assert b"lightning-topo = lightning_topo._cli:main" in script
    [page] = tmp_path.rglob("report.html")
    assert "net.0" in page.read_text()


def pyright(installed, *arguments, cwd):
    command = Path(sys.executable).with_name("pyright")
    if not command.is_file():
        pytest.skip("needs pyright")
    done = run(str(command), *arguments, cwd=cwd, env=clean_environment(installed), timeout=300)
    return json.loads(done.stdout)


USER = """
import lightning as L
import torch
from torch import nn

from lightning_topo import (
    Distortion, NeuronGroup, Period, Persistence, PersistenceDiagram, ProbeResult, ProbeUnavailable, RunRecord,
    Sharpness, StepDistortion, TopologyEarlyStopping, TopologyMonitor, TopologyStepGuard, find_neuron_groups,
    persistence, read_record, sharpness, step_distortion,
)
from lightning_topo.metrics import CriticalRatio
from lightning_topo.phases import EventName, TopologyEvent

monitor = TopologyMonitor([Distortion(), Persistence(max_dim=0), Sharpness()], log_groups=["a.*"], max_overhead=None)
callbacks: list[L.Callback] = [monitor, TopologyEarlyStopping("instability"), TopologyStepGuard(max_ratio=0.5)]
model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
groups: list[NeuronGroup] = find_neuron_groups(model, torch.randn(4, 2))
before = groups[0].gather(dict(model.named_parameters()))
step: StepDistortion = step_distortion(before, 1.1 * before)
diagram: PersistenceDiagram = persistence(before, 1)
deaths: torch.Tensor = diagram[1].deaths
value: float = sharpness(lambda: model(torch.randn(8, 2)).square().mean(), model.parameters()).value
ratio: float = step.critical_ratio
record: RunRecord = read_record("run")
first: TopologyEvent = record.events[0]
name: EventName = first.name
CriticalRatio().update(before, before)


class Own:
    name = "own"

    def measure(self, capture: object) -> dict[str, float]:
        return {"one": 1.0}


class Seldom:
    name = "seldom"
    period = Period(2, "epoch", adaptive=True)

    def measure(self, capture: object) -> ProbeResult:
        if capture is None:
            raise ProbeUnavailable("nothing to see", remedy="Look elsewhere.")
        return ProbeResult({"net.0": {"one": 1.0}}, carry=capture)


TopologyMonitor([Own(), Seldom()])
"""
WRONG = """
from lightning_topo import Distortion, TopologyMonitor, step_distortion

TopologyMonitor(on_error="ignore")
Distortion(every_n_steps="sometimes")
step_distortion("before", "after")
TopologyMonitor(probes=[3])
"""


def test_a_users_script_is_checked_strictly_and_a_wrong_one_is_refused(installed, tmp_path):
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    found = pyright(installed, "--outputjson", cwd=tmp_path)["generalDiagnostics"]
    errors = [d for d in found if d["severity"] == "error"]
    # What torch and Lightning leave unknown is theirs.
    ours = [d for d in errors if d["file"].endswith("right.py")]
    assert not ours, [(d["range"]["start"]["line"], d["message"]) for d in ours]
    assert {d["range"]["start"]["line"] for d in errors if d["file"].endswith("wrong.py")} == {3, 4, 5, 6}


def test_no_public_signature_is_unknown(installed, tmp_path):
    found = pyright(installed, "--verifytypes", "lightning_topo", "--ignoreexternal", "--outputjson", cwd=tmp_path)
    completeness = found["typeCompleteness"]
    counts = completeness["exportedSymbolCounts"]
    assert counts["withKnownType"] > 200
    assert counts["withUnknownType"] == counts["withAmbiguousType"] == 0
    assert completeness["completenessScore"] == 1
    packages = (lightning_topo, geometry, homology, metrics, neurons, phases, probes, stability)
    public = [getattr(module, name) for module in packages for name in module.__all__]
    names = {f"{thing.__module__}.{thing.__qualname__}" for thing in public if hasattr(thing, "__qualname__")}
    unknown = [
        (symbol["name"], diagnostic["message"])
        for symbol in completeness["symbols"]
        if symbol["name"] in names or symbol["name"].rpartition(".")[0] in names
        for diagnostic in symbol["diagnostics"]
        if "nknown" in diagnostic["message"] and "base class" not in diagnostic["message"]  # torchmetrics' own
    ]
    assert len(names & {symbol["name"] for symbol in completeness["symbols"]}) > 70
    assert not unknown


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the schema 1.2.0 requires
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["type"] == "software"
    assert all({"name"} == set(author) or {"family-names"} <= set(author) for author in citation["authors"])
    [paper] = citation["references"]
    assert "2510.02670" in paper["url"]
    assert {"type", "title", "authors"} <= set(paper)


def test_a_permissive_install_needs_no_giotto_ph(tmp_path):
    """With giotto-ph out of sight, H1 is computed by GUDHI, with the same result."""
    if find_spec("gudhi") is None:
        pytest.skip("needs gudhi")
    code = """
        import sys
        for name in ["gph", *(name for name in sys.modules if name.startswith("gph."))]:
            sys.modules[name] = None  # what an uninstalled package is to find_spec and import
        import importlib.util, math, torch
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "gph" else found(name, *rest)
        from lightning_topo import persistence
        from lightning_topo.homology import available_engines
        assert available_engines()[0] == "gudhi", available_engines()
        angle = 2 * math.pi * torch.arange(24) / 24
        diagram = persistence(torch.stack([angle.cos(), angle.sin()], 1), 1)
        assert len(diagram[1].deaths) == 1 and diagram.engine == "gudhi"
        assert not [name for name in sys.modules if name.split(".")[0] == "gph" and sys.modules[name]]
    """
    done = warm.run(textwrap.dedent(code), folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_licences_page_and_the_readme_name_the_same_permissive_install():
    line = "pip install . gudhi && pip uninstall -y giotto-ph"
    assert line in (ROOT / "README.md").read_text()
    assert line in (ROOT / "docs" / "licences.md").read_text()
