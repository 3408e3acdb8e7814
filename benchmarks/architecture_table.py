"""The table of docs/architectures.md: what is found in each architecture, and whether it is proved.

    python -m benchmarks.architecture_table            # prints the page
    python -m benchmarks.architecture_table --write    # writes it

It builds the models of `benchmarks/architectures.py` (some need `transformers`; nothing is downloaded), finds
their groups, and verifies each by permuting it. The tests compare the lines of models that are written here
with the page.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.architectures import ARCHITECTURES, Architecture, built
from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.neurons._group import KINDS
from lightning_topo.neurons._table import size_text

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"

INTRODUCTION = """\
# Neurons of any architecture

Written by `python -m benchmarks.architecture_table --write`: each model below is built small and random, its
neurons are found by one traced run, and every group is permuted in float64. *Verified* means that neither the
output nor, but for the same permutation, the gradient of the loss changed. Each group is written as its name
and the number of its neurons, `blocks x neurons` where they are exchanged within blocks. The residual groups
are found on request (`kinds=`), as their neurons span the network.

| architecture | groups | neurons | found | verified |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(row(entry) for entry in ARCHITECTURES)


def row(entry: Architecture) -> str:
    """One architecture's line of the table."""
    example = built(entry)
    groups = find_neuron_groups(example.model, example.inputs, kinds=KINDS)
    return "| " + " | ".join(cells(entry.name, groups)) + " |\n"


def cells(name: str, groups: Sequence[NeuronGroup]) -> tuple[str, ...]:
    """What a line says: name, groups, neurons, those found by kind, and what was not verified."""
    by_kind: defaultdict[str, list[NeuronGroup]] = defaultdict(list)
    for group in groups:
        by_kind[group.kind].append(group)
    found = "; ".join(f"{kind}: {described(members)}" for kind, members in by_kind.items())
    failures = [f"`{group.name}` {group.status}: {group.reason}" for group in groups if group.status != "verified"]
    neurons = sum(group.n_blocks * group.n for group in groups)
    return name, str(len(groups)), str(neurons), found, "; ".join(failures) or f"all {len(groups)}"


def described(groups: Sequence[NeuronGroup]) -> str:
    """Names and sizes, the later ones only counted."""
    shown = ", ".join(f"`{group.name}` {size_text(group)}" for group in groups[:2])
    return shown + (f" and {len(groups) - 2} more" if len(groups) > 2 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
