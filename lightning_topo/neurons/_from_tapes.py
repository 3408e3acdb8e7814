"""Find the neurons in recorded steps: verified groups, and the groups of every parameter."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo._tape import Tape
from lightning_topo._tape.draws import hidden_draws
from lightning_topo.neurons._assembly import assemble, distinct, is_carried
from lightning_topo.neurons._coverage import parameter_coverage
from lightning_topo.neurons._experts import guess_expert_groups
from lightning_topo.neurons._group import KINDS, Kind, NeuronGroup
from lightning_topo.neurons._tape_coupling import couple, parameters_of
from lightning_topo.neurons._trace import CouplingTrace
from lightning_topo.neurons._verify import fewer_samples, verify_on_tapes, with_carried, without_carried

log: logging.Logger = logging.getLogger(__name__)

DEFAULT_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "residual")


@dataclass(frozen=True, slots=True)
class FoundNeurons:
    """Holds the groups of neurons found in recorded training steps, and the groups of each trained parameter.

    - `groups`: The groups found, and those declared by the user.
    - `coverage`: For each trained parameter, the names of its groups or the reason why it is in none.
    - `refused`: For each recorded step that cannot be replayed, the reason.
    - `drawn`: The names of the groups to whose neurons random numbers of their own may go, as from a dropout of units.
    """

    groups: tuple[NeuronGroup, ...]
    coverage: tuple[ParameterCoverage, ...]
    refused: tuple[str, ...] = ()
    drawn: frozenset[str] = frozenset()

    @property
    def uncovered(self) -> tuple[ParameterCoverage, ...]:
        """The trained parameters that are in no group, the largest first, each with the reason."""
        return tuple(sorted((c for c in self.coverage if not c.groups), key=lambda c: -c.numel))


def groups_from_tapes(
    tapes: Sequence[Tape],
    *,
    module: nn.Module | None = None,
    kinds: Collection[str] = DEFAULT_KINDS,
    include: Collection[str] = ("*",),
    exclude: Collection[str] = (),
    declared: Collection[NeuronGroup] = (),
    verify: bool = True,
    seed: int = 0,
) -> FoundNeurons:
    """Find the groups of neurons in recorded training steps, and verify each group on every step.

    A tape is one step recorded by `lightning_topo._tape.StepRecorder`. Nothing of the module's code runs, and no random
    state is touched.

    - `tapes`: The recorded steps, each passed through `lightning_topo._tape.accepted`. A tape that cannot be replayed
      is left out, and `FoundNeurons.refused` holds the reason. Of several tapes with the same calls on the same
      parameters the first two are used.
    - `module`: The recorded module, whose structure is read to guess whole experts; None finds no whole experts.
    - `kinds`: The kinds to find, see `NeuronGroup`; by default all but "residual", whose neurons span the network.
    - `include`: Patterns (as in `fnmatch`) of group names to keep.
    - `exclude`: Patterns of group names to leave out.
    - `declared`: Groups to add and verify, see `declare_neurons`.
    - `verify`: False leaves the groups "unverified", and finds no whole experts.
    - `seed`: Draws the permutations that verify groups.

    >>> import torch
    >>> from lightning_topo._tape import StepRecorder, accepted
    >>> model, recorder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), StepRecorder()
    >>> recorder.begin(model)
    >>> recorder.loss(model(torch.randn(4, 3)).square().mean())
    >>> found = groups_from_tapes([accepted(tape) for tape in recorder.end()])
    >>> [(group.name, group.n, group.status) for group in found.groups], found.uncovered[0].param
    ([('0', 8, 'verified')], '2.bias')
    """
    usable = _without_repeats([tape for tape in tapes if not tape.obstacle])
    refused = tuple(tape.obstacle for tape in tapes if tape.obstacle)
    if not usable:
        drawn = frozenset(group.name for group in declared)
        return FoundNeurons(tuple(declared), parameter_coverage(tuple(declared), tapes, None, {}), refused, drawn)
    coupling = couple(usable)
    trace = coupling.trace
    assembled = assemble(trace, parameters_of(usable, trace))
    report_troubles(trace)
    known = {frozenset(group.slices) for group in declared}
    found = [group for group in assembled if frozenset(without_carried(group).slices) not in known]
    chosen = wanted(found, kinds, include, exclude)
    left = {
        name: f"its group {group.name} ({group.kind}) is watched only where it is asked for: "
        f"groups=find_neuron_groups(module, inputs, kinds=['{group.kind}', ...])"
        for group in found
        if group not in chosen
        for name in group.parameter_names
    }
    groups = [*chosen, *(with_carried(group, assembled) for group in declared)]
    if verify:
        guesses = wanted(_expert_groups(module, trace), kinds, include, exclude)
        guesses = [with_carried(group, assembled) for group in guesses]
        cheap = fewer_samples(usable, coupling)
        asked = [*groups, *guesses]
        judged = list(zip(verify_on_tapes(usable, asked, seed=seed, cheap=cheap), map(_carries, asked), strict=True))
        kept = judged[: len(groups)] + [one for one in judged[len(groups) :] if one[0].status == "verified"]
        groups, carries = distinct([group for group, _ in kept]), [carries for _, carries in kept]
    else:
        groups, carries = [without_carried(group) for group in groups], list(map(_carries, groups))
    # What was not recorded may have drawn anything.
    is_hidden = bool(refused) or any(hidden_draws(tape.calls) for tape in usable)
    drawn = frozenset(group.name for group, carried in zip(groups, carries, strict=True) if carried or is_hidden)
    return FoundNeurons(tuple(groups), parameter_coverage(groups, tapes, trace, left), refused, drawn)


def _carries(group: NeuronGroup) -> bool:
    """Whether recorded draws are permuted with the group."""
    return any(is_carried(piece.param) for piece in group.slices)


def _without_repeats(tapes: Sequence[Tape]) -> list[Tape]:
    """The first two tapes of each program, and of those whose gradient contradicts the replay's.

    Further epochs over one batch show nothing else that is new.
    """
    met = Counter[tuple[Any, ...]]()
    kept = []
    for tape in tapes:
        program = (*tape.program, tape.unlike)
        met[program] += 1
        if met[program] <= 2:
            kept.append(tape)
    return kept


def _expert_groups(module: nn.Module | None, trace: CouplingTrace) -> list[NeuronGroup]:
    """The guesses at whole experts; one that fails, on a module of an unheard-of make, takes no other group."""
    try:
        return [] if module is None else guess_expert_groups(module, trace)
    except Exception as error:
        log.warning("whole experts were not looked for (%s: %s)", type(error).__name__, error)
        return []


def wanted(
    groups: Iterable[NeuronGroup], kinds: Collection[str], include: Collection[str], exclude: Collection[str]
) -> list[NeuronGroup]:
    """The groups of the kinds asked for whose name matches a pattern of `include` and none of `exclude`."""
    return [
        group
        for group in groups
        if group.kind in kinds
        and any(fnmatchcase(group.name, pattern) for pattern in include)
        and not any(fnmatchcase(group.name, pattern) for pattern in exclude)
    ]


def report_troubles(trace: CouplingTrace) -> None:
    """Log the operators that froze what they touched."""
    for operator, count in trace.unknown.items():
        log.warning(
            "lightning-topo has no rule for %s (called %d times): neurons that it reads are left out. "
            "`register_rule` adds one",
            *(operator, count),
        )
    for operator, error in trace.failed.items():
        log.warning("lightning-topo's rule for %s failed (%s): neurons that it reads are left out", operator, error)
