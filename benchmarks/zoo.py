"""Which neurons are found in models as people train them, and what is left over.

    python -m benchmarks.zoo                 # all models whose packages are installed, minutes
    python -m benchmarks.zoo --only falcon   # one model, with every group and every parameter in none
    python -m benchmarks.zoo --samples 32    # with as many samples as a training has in a batch

Models are tiny and randomly initialised; nothing is downloaded. `share` is the part of the trainable entries that
lies in no group, `unexplained` the part of them all for which no reason is given that a person accepts. `seconds` is
the time that finding and verifying took, `steps` the same in training steps (forward and backward), `memory` its peak
over that of a training step. The models are those of `zoo_models.py`; those whose package is not installed are
left out. With `--samples` each model's inputs are repeated; those whose tensors do not agree in their first axes are
left out then.
"""

import argparse
import importlib.util
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.zoo_models import ZOO, Built, Entry
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._coverage import INPUT
from lightning_topo.neurons._discovery import forward
from lightning_topo.neurons._from_tapes import FoundNeurons, groups_from_tapes
from lightning_topo.neurons._group import KINDS, clean_name
from lightning_topo.neurons._one_run import record_run, significant

ACCEPTED = (
    INPUT, "an output of the model", "classes", "a vocabulary", "positions in space", "positions in time", "tokens",
    "a Fourier transform along it", "it is a single number", "the recorded step does not use it, though others may",
)  # fmt: skip
"""Why a parameter may be in no group: reasons that a person accepts. All others count as unexplained."""
SLOW_STEP_S = 0.1
"""From here on a person would notice how many steps a search takes: below, most of it is Python's overhead."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one model, and at which cost.

    `uncovered` counts, by parameter, trainable entries in no group; `reasons` says of whole parameters why they are in
    none. `steps` and `memory` are the time and peak memory of the search over those of a training step.
    """

    groups: Sequence[NeuronGroup]
    uncovered: dict[str, int]
    n_entries: int
    seconds: float
    reasons: dict[str, str] = field(default_factory=dict)
    steps: float = math.nan
    memory: float = math.nan

    @property
    def share(self) -> float:
        """The share of trainable entries in no group."""
        return sum(self.uncovered.values()) / max(self.n_entries, 1)

    @property
    def unexplained(self) -> float:
        """The share of trainable entries in no group without a reason that a person accepts."""
        count = sum(n for name, n in self.uncovered.items() if not is_accepted(self.reasons.get(name, "")))
        return count / max(self.n_entries, 1)


def with_samples(inputs: Any, count: int) -> Any:
    """Inputs with this many samples: those that there are, again and again.

    Raises:
        ValueError: The tensors do not agree in their first axes.

    >>> with_samples({"x": torch.tensor([1, 2])}, 5)
    {'x': tensor([1, 2, 1, 2, 1])}
    """
    shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise ValueError(f"expected inputs with one first axis, of samples, got shapes {shapes}")
    chosen = torch.arange(count) % shapes[0][0]
    return tree_map(lambda x: x[chosen] if isinstance(x, torch.Tensor) else x, inputs)


def is_accepted(reason: str) -> bool:
    """Whether all that a reason names is among those that a person accepts.

    >>> is_accepted("axis 0: classes; axis 1: tokens"), is_accepted("axis 0: written in parts"), is_accepted("")
    (True, False, False)
    """
    return bool(reason) and all(part.partition(": ")[2] in ACCEPTED or part in ACCEPTED for part in reason.split("; "))


def search(built: Built, seed: int = 0, *, costs: bool = False) -> Found:
    """Find and verify the groups of a model, count what is in none, and with `costs` measure time and memory."""
    model, inputs = built
    run = forward(model, inputs)
    assert run is not None

    def find() -> FoundNeurons:
        tape = record_run(model, run)
        if tape.obstacle:
            raise RuntimeError(tape.obstacle)
        return groups_from_tapes([tape], module=model, kinds=KINDS, seed=seed)

    start = time.perf_counter()
    found = find()
    seconds = time.perf_counter() - start
    trained = {clean_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in trained.items()}
    for group in found.groups:
        for piece in group.slices:
            if "*" in piece.param:
                for name in piece.names(group.n):
                    masks[name].fill_(True)
            elif piece.param in masks:
                piece.view(masks[piece.param]).fill_(True)
    uncovered = {name: int((~mask).sum()) for name, mask in masks.items() if not mask.all()}
    reasons = {one.param: one.reason for one in found.uncovered}
    entries = sum(mask.numel() for mask in masks.values())
    if not costs:
        return Found(found.groups, uncovered, entries, seconds, reasons)

    def step() -> None:
        loss = sum(x.abs().mean() for x in significant(run(model)))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        model.zero_grad()

    step()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    held = sum(p.numel() * p.element_size() for p in trained.values())  # which is there before either begins
    memory = (peak_bytes(find) + held) / (peak_bytes(step) + held)
    return Found(found.groups, uncovered, entries, seconds, reasons, seconds / median(times), memory)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch has allocated on the CPU at once while `work` ran, beyond what was there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            most = max(most, now)
    return most


def is_installed(entry: Entry) -> bool:
    return importlib.util.find_spec(entry.requires) is not None


def row(name: str, found: Found) -> str:
    """One line of the table."""
    status, kinds = Counter(g.status for g in found.groups), Counter(g.kind for g in found.groups)
    other = len(found.groups) - status["verified"] - status["incoming_only"]
    by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return (
        f"{name:22} {len(found.groups):6} {status['verified']:8} {status['incoming_only']:13} {other:5} "
        f"{found.share:6.1%} {found.unexplained:11.1%} {found.seconds:8.1f} {found.steps:6.0f} {found.memory:6.1f}  "
        f"{by_kind}"
    )


def summary(everything: Sequence[Found]) -> str:
    """The last line of the table."""
    groups = [group for found in everything for group in found.groups]
    verified = sum(group.status == "verified" for group in groups)
    whole = sum(all(group.status == "verified" for group in found.groups) for found in everything)
    loose = sum(found.unexplained * found.n_entries for found in everything)
    entries = sum(found.n_entries for found in everything)
    slow = [found.steps for found in everything if found.seconds >= SLOW_STEP_S * found.steps]
    of_slow = (
        f"; of the {len(slow)} with steps of 0.1 s or more {median(slow):.0f}, at most {max(slow):.0f}" if slow else ""
    )
    return (
        f"{len(everything)} models, in {whole} of them all groups verified; {verified} of {len(groups)} groups; "
        f"{loose / max(entries, 1):.2%} of the trainable entries without an acceptable reason, at most "
        f"{max((found.unexplained for found in everything), default=0.0):.1%} in one model; "
        f"median {median(found.steps for found in everything or [Found((), {}, 0, 0.0)]):.0f} training steps and "
        f"{median(found.memory for found in everything or [Found((), {}, 0, 0.0)]):.1f} times their memory"
        f"{of_slow}"
    )


HEADER = f"{'model':22} groups verified incoming_only other  share unexplained  seconds  steps memory  kinds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one model of the zoo, in detail")
    parser.add_argument("--samples", type=int, metavar="N", help="repeat the inputs until there are N samples")
    arguments = parser.parse_args()
    only, samples = arguments.only, arguments.samples
    chosen = [e for e in ZOO if only in (None, e.name)]
    if not chosen:
        parser.error(f"expected --only to be one of {', '.join(e.name for e in ZOO)}")
    warnings.simplefilter("ignore")
    search((torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(1, 2)))  # what is imported on the way counts once
    print(HEADER)
    everything: list[Found] = []
    for e in chosen:
        if not is_installed(e):
            print(f"{e.name:22} {e.requires} is not installed")
            continue
        torch.manual_seed(0)
        try:
            model, inputs = e.build()
            found = search((model, inputs if samples is None else with_samples(inputs, samples)), costs=True)
        except Exception as error:  # the others are still worth looking at
            print(f"{e.name:22} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        everything.append(found)
        print(row(e.name, found), flush=True)
        if only:
            for group in found.groups:
                blocks = "".join(f"{size} x " for size in group.block_shape)
                print(f"  {group.name}: {group.kind} {blocks}{group.n}, {group.status} {group.reason}")
                print(f"      {', '.join(group.params)}")
            for name, count in found.uncovered.items():
                print(f"  in no group: {count} entries of {name} ({found.reasons.get(name, 'the rest of it is')})")
    print(summary(everything))


if __name__ == "__main__":
    main()
