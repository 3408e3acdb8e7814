"""Reproduce the experiments around arXiv:2510.02670: each writes figures and a table.

python -m benchmarks.paper                  # all of it, into docs/paper
python -m benchmarks.paper merging          # one experiment
python -m benchmarks.paper --small          # under a minute, into a temporary folder
"""

import argparse
import importlib
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.paper import EXPERIMENTS
from benchmarks.paper.outcome import Outcome

DOCS = Path(__file__).parents[2] / "docs" / "paper"


def experiment(name: str, *, small: bool, data: Path | None = None) -> Outcome:
    """Run one experiment; `data` replaces the digits of those that take data."""
    module = importlib.import_module(f"benchmarks.paper.{name}")
    return module.present(module.measure(small) if data is None else module.measure(small, data))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="tiny versions, to see that everything works")
    parser.add_argument("--out", type=Path, help="the folder to write to")
    parser.add_argument("--data", type=Path, help="of `sphere` alone: an .npz file with samples x and classes y")
    chosen = parser.parse_args(arguments)
    if chosen.data and chosen.names != ["sphere"]:
        parser.error("expected --data with the one experiment that takes data: sphere")
    if unknown := set(chosen.names) - set(EXPERIMENTS):
        parser.error(f"expected names among {', '.join(EXPERIMENTS)}, got {', '.join(sorted(unknown))}")
    # What a small run or other data tell is not what docs/paper.md speaks of: it stays out of there unless asked for.
    folder = chosen.out or (Path(tempfile.mkdtemp(prefix="paper-")) if chosen.small or chosen.data else DOCS)
    torch.set_num_threads(1)
    for name in chosen.names or EXPERIMENTS:
        began = time.perf_counter()
        outcome = experiment(name, small=chosen.small, data=chosen.data)
        options = ["--small"] * chosen.small + ([f"--data {chosen.data.name}"] if chosen.data else [])
        command = " ".join(["python -m benchmarks.paper", name, *options])
        written = outcome.write(folder, name, command)
        print(f"{name}: {', '.join(map(str, written))} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
