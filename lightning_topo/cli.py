"""The command `lightning-topo`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 where the arguments cannot be used."""
    parser = argparse.ArgumentParser(
        prog="lightning-topo", description="Watch the topology of a network's neurons while it trains."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small network on digits and watch it")
    demo.add_argument("--lr", type=float, default=0.3, help="learning rate (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=800, help="optimizer steps (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the network's initial weights")
    demo.add_argument("--save-dir", type=Path, default=Path(), help="where topology_demo/ goes (default: here)")
    demo.set_defaults(command=_demo)

    report = commands.add_parser("report", help="write a run's report anew, from its record")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder; several are put side by side")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the first run's folder)")
    report.add_argument(
        "--follow", action="store_true", help="go on as the run does, until the standard input ends or says anything"
    )
    report.set_defaults(command=_report)

    neurons = commands.add_parser("neurons", help="print the groups of neurons of a model, each verified")
    neurons.add_argument("model", metavar="MODULE:NAME", help="a model, or a class or function that makes one")
    neurons.add_argument("--shape", help="of an example input, batch first, as in 4,3,32,32 (default: guessed)")
    neurons.set_defaults(command=_neurons)

    workspace = commands.add_parser("workspace", help="write a Weights & Biases workspace that shows phase transitions")
    workspace.add_argument("--out", type=Path, default=Path("phase.json"), help="its JSON (default: %(default)s)")
    workspace.add_argument("--push", metavar="ENTITY/PROJECT", help="also create it there, as a saved view")
    workspace.set_defaults(command=_workspace)

    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments)
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        print(f"lightning-topo: {error}", file=sys.stderr)
        return 2


def _demo(arguments: argparse.Namespace) -> int:
    import torch

    from lightning_topo.demo import run
    from lightning_topo.outputs.page import verdict
    from lightning_topo.outputs.record import REPORT, read_record

    torch.set_num_threads(1)  # threads cost more than they bring to matrices this small
    monitor, _ = run(lr=arguments.lr, steps=arguments.steps, seed=arguments.seed, save_dir=arguments.save_dir)
    if monitor.dirpath is None:
        return 1
    print(f"\n{verdict(read_record(monitor.dirpath))}\n")
    print(f"Record: {monitor.dirpath}")
    print(f"Open in a browser: {(monitor.dirpath / REPORT).resolve().as_uri()}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    import gc

    is_collecting = gc.isenabled()
    if not arguments.follow:
        gc.disable()  # a record is a million objects without a cycle
    try:
        return _written_report(arguments)
    finally:
        if is_collecting:
            gc.enable()


def _written_report(arguments: argparse.Namespace) -> int:
    from lightning_topo.outputs.page import verdict, write_report
    from lightning_topo.outputs.page.live import follow_politely
    from lightning_topo.outputs.record import REPORT, RecordFollower

    if arguments.follow:
        print(follow_politely(_run_folder(arguments.runs[0])).resolve().as_uri())
        return 0
    records = [RecordFollower(_run_folder(path)).read() for path in arguments.runs]
    for record in records:
        print(f"{record.dirpath}: {verdict(record)}")
    page = write_report(records, arguments.out or records[0].dirpath / REPORT)
    print(page.resolve().as_uri())
    return 0


def _neurons(arguments: argparse.Namespace) -> int:
    import torch

    from lightning_topo.neurons import find_neuron_groups, neuron_table

    model = _imported(arguments.model)
    inputs = None
    if arguments.shape is not None:
        shape = [int(size) for size in arguments.shape.split(",")]
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    print(neuron_table(find_neuron_groups(model, inputs), dict(model.named_parameters())))
    return 0


def _workspace(arguments: argparse.Namespace) -> int:
    from lightning_topo.outputs.trackers.workspace import push_workspace, write_workspace

    entity, _, project = (arguments.push or "").partition("/")
    if arguments.push is not None and (not entity or not project or "/" in project):
        raise ValueError(f"expected --push ENTITY/PROJECT, got {arguments.push!r}")
    try:
        print(write_workspace(arguments.out))
        if arguments.push is not None:
            print(push_workspace(entity, project))
    except ImportError as error:
        raise ImportError(f'{error}: pip install "lightning-topo[workspace]"') from error
    return 0


def _imported(path: str) -> "nn.Module":
    """The model that `package.module:name` names, or that calling it makes."""
    from torch import nn

    module_name, _, name = path.partition(":")
    sys.path.insert(0, "")
    found = getattr(import_module(module_name), name, None)
    model = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected MODULE:NAME of a model, or of what makes one without arguments, got {path!r}")
    return model


def _run_folder(path: Path) -> Path:
    """The folder itself, or the one that the monitor made in it."""
    inner = path / "topology"
    return inner if inner.is_dir() and not (path / "measurements.jsonl").is_file() else path
