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


def experiment(name: str, *, small: bool) -> Outcome:
    """Run one experiment."""
    return importlib.import_module(f"benchmarks.paper.{name}").run(small)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="tiny versions, to see that everything works")
    parser.add_argument("--out", type=Path, help="the folder to write to")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(EXPERIMENTS):
        parser.error(f"expected names among {', '.join(EXPERIMENTS)}, got {', '.join(sorted(unknown))}")
    # What a small run finds is no evidence, and stays out of the docs unless asked for.
    folder = chosen.out or (Path(tempfile.mkdtemp(prefix="paper-")) if chosen.small else DOCS)
    torch.set_num_threads(1)
    for name in chosen.names or EXPERIMENTS:
        began = time.perf_counter()
        outcome = experiment(name, small=chosen.small)
        command = f"python -m benchmarks.paper {name}{' --small' * chosen.small}"
        written = outcome.write(folder, name, command)
        print(f"{name}: {', '.join(map(str, written))} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
