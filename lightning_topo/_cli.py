"""The command `lightning-topo`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import lightning_topo

if TYPE_CHECKING:
    from torch import nn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    It is 0; 1 if the demo wrote no record; or 2 if the command failed, after a message on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-topo", description="Watch the topology of a network's neurons while it trains."
    )
    parser.add_argument("--version", action="version", version=f"lightning-topo {lightning_topo.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small network on digits and watch it")
    demo.add_argument("--lr", type=float, default=0.3, help="learning rate (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=800, help="optimizer steps (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the network's initial weights")
    demo.add_argument("--save-dir", type=Path, default=Path(), help="where topology_demo/ goes (default: here)")
    demo.set_defaults(command=_demo)

    report = commands.add_parser("report", help="write a run's report again, or compare several runs")
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run folder, or a folder with runs below it"
    )
    report.add_argument(
        "--out",
        type=Path,
        help="the page (default: report.html in the run's folder; for several runs comparison.html above them)",
    )
    report.add_argument("--csv", type=Path, help="also write settings and outcomes, one line per run")
    report.add_argument(
        "--follow", action="store_true", help="keep the page up to date until standard input ends or sends anything"
    )
    report.set_defaults(command=_report)

    watch = commands.add_parser("watch", help="serve a run's page on this machine while the run goes on")
    watch.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    watch.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: a free one)")
    watch.add_argument("--every", type=float, default=10.0, help="seconds between updates (default: %(default)s)")
    watch.set_defaults(command=_watch)

    neurons = commands.add_parser("neurons", help="print the groups of neurons of a model, each verified, or of a run")
    neurons.add_argument(
        "model",
        metavar="MODULE:NAME | RUN",
        help="a model, or a class or function that makes one; or a run folder, to show the groups of every parameter",
    )
    neurons.add_argument("--shape", help="shape of an example input, batch first, as in 4,3,32,32 (default: guessed)")
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
    from lightning_topo.outputs.page import recommendation, verdict, write_report
    from lightning_topo.outputs.page._comparison import default_place, run_folders, write_table
    from lightning_topo.outputs.page._live import follow_politely
    from lightning_topo.outputs.record import REPORT, RecordFollower

    if arguments.follow:
        print(follow_politely(_only_run(arguments.runs[0])).resolve().as_uri())
        return 0
    folders = [folder for path in arguments.runs for folder in run_folders(path)]
    records = [RecordFollower(folder).read() for folder in dict.fromkeys(folders)]
    for record in records:
        print(f"{record.dirpath}: {verdict(record)}")
        if record.about and "ended" not in record.about:
            print("  The record has no end: the training goes on, or its process was killed.")
        if decision := recommendation(record):
            print(f"  Next: {decision}")
    out = arguments.out or (records[0].dirpath / REPORT if len(records) == 1 else default_place(folders))
    if len(records) > 1 and out.resolve() in {(record.dirpath / REPORT).resolve() for record in records}:
        raise ValueError(f"expected another place for the comparison than a run's own page, got --out {out}")
    if arguments.csv is not None:
        print(write_table(records, arguments.csv))
    print(write_report(records, out).resolve().as_uri())
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    from lightning_topo.outputs.page._serve import page_server

    with page_server(_only_run(arguments.run), arguments.port, arguments.every) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/ (end with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _only_run(path: Path) -> Path:
    """The one run at or below a path."""
    from lightning_topo.outputs.page._comparison import run_folders

    folders = run_folders(path)
    if len(folders) != 1:
        raise ValueError(
            f"expected one run, got a folder with {len(folders)}: name one of {', '.join(map(str, folders[:5]))}"
        )
    return folders[0]


def _neurons(arguments: argparse.Namespace) -> int:
    if Path(arguments.model).is_dir():
        return _neurons_of_run(_only_run(Path(arguments.model)))
    import torch

    from lightning_topo.neurons import find_neuron_groups, neuron_table

    model = _imported(arguments.model)
    inputs = None
    if arguments.shape is not None:
        shape = [int(size) for size in arguments.shape.split(",")]
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    groups = find_neuron_groups(model, inputs)
    print(neuron_table(groups, dict(model.named_parameters())))
    if inputs is None and not any(group.status == "verified" for group in groups):
        message = "No group was verified, with inputs of a guessed shape: give it, as in --shape 4,3,32,32"
        print(message, file=sys.stderr)
    return 0


def _neurons_of_run(folder: Path) -> int:
    from lightning_topo.outputs.record import read_record

    table = read_record(folder).parameters
    if table is None:
        raise ValueError(f"expected a record with a list of parameters in {folder}, got one of an older version")
    print(table)
    return 0


def _workspace(arguments: argparse.Namespace) -> int:
    from lightning_topo.outputs.trackers._workspace import push_workspace, write_workspace

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
        raise ValueError(
            f"expected MODULE:NAME of a model, or of a function of no arguments that makes one, got {path!r}"
        )
    return model
