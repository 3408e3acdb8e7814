"""Which neurons are found in models as people train them, and what is left over.

    python -m benchmarks.zoo                 # all models whose packages are installed, minutes
    python -m benchmarks.zoo --only falcon   # one model, with every group and every parameter in none

Models are tiny and randomly initialised; nothing is downloaded. `share` is the part of the trainable entries that
lies in no group, `seconds` the time that finding and verifying took.
"""

import argparse
import importlib.util
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.zoo_models import ZOO, Built, Entry
from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.neurons.group import KINDS, clean_name


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one model; `uncovered` counts, by parameter, trainable entries in no group."""

    groups: Sequence[NeuronGroup]
    uncovered: dict[str, int]
    n_entries: int
    seconds: float

    @property
    def share(self) -> float:
        """The share of trainable entries in no group."""
        return sum(self.uncovered.values()) / max(self.n_entries, 1)


def search(built: Built, seed: int = 0) -> Found:
    """Find and verify the groups of a model, and count what is in none."""
    model, inputs = built
    start = time.perf_counter()
    groups = find_neuron_groups(model, inputs, kinds=KINDS, seed=seed)
    seconds = time.perf_counter() - start
    trained = {clean_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in trained.items()}
    for group in groups:
        for piece in group.slices:
            if "*" in piece.param:
                for name in piece.names(group.n):
                    masks[name].fill_(True)
            elif piece.param in masks:
                piece.view(masks[piece.param]).fill_(True)
    uncovered = {name: int((~mask).sum()) for name, mask in masks.items() if not mask.all()}
    return Found(groups, uncovered, sum(mask.numel() for mask in masks.values()), seconds)


def is_installed(entry: Entry) -> bool:
    return importlib.util.find_spec(entry.requires) is not None


def row(name: str, found: Found) -> str:
    """One line of the table."""
    status, kinds = Counter(g.status for g in found.groups), Counter(g.kind for g in found.groups)
    other = len(found.groups) - status["verified"] - status["incoming_only"]
    by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return (
        f"{name:22} {len(found.groups):6} {status['verified']:8} {status['incoming_only']:13} {other:5} "
        f"{found.share:6.1%} {found.seconds:8.1f}  {by_kind}"
    )


HEADER = f"{'model':22} groups verified incoming_only other  share  seconds  kinds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one model of the zoo, in detail")
    only = parser.parse_args().only
    chosen = [e for e in ZOO if only in (None, e.name)]
    if not chosen:
        parser.error(f"expected --only to be one of {', '.join(e.name for e in ZOO)}")
    warnings.simplefilter("ignore")
    print(HEADER)
    for e in chosen:
        if not is_installed(e):
            print(f"{e.name:22} {e.requires} is not installed")
            continue
        torch.manual_seed(0)
        try:
            found = search(e.build())
        except Exception as error:  # the others are still worth looking at
            print(f"{e.name:22} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        print(row(e.name, found), flush=True)
        if only:
            for group in found.groups:
                blocks = "".join(f"{size} x " for size in group.block_shape)
                print(f"  {group.name}: {group.kind} {blocks}{group.n}, {group.status} {group.reason}")
                print(f"      {', '.join(group.params)}")
            for name, count in found.uncovered.items():
                print(f"  in no group: {count} entries of {name}")


if __name__ == "__main__":
    main()
