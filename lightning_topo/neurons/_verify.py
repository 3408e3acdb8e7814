"""Prove groups by permuting their neurons on the tape: the loss must not change, the gradient only be permuted."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from lightning_topo._tape import Tape
from lightning_topo.neurons._assembly import assemble, is_carried
from lightning_topo.neurons._bench import Attempt, Bench
from lightning_topo.neurons._fewer_samples import with_fewer_samples
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._one_run import Run, record_run
from lightning_topo.neurons._sample_axes import GUESSES
from lightning_topo.neurons._tape_coupling import Coupling, couple

log: logging.Logger = logging.getLogger(__name__)


ATTEMPTS = (
    Attempt(),
    Attempt(spread=0.1),
    Attempt(choices=False),
    Attempt(gradients=False),
    Attempt(float64=False),
    Attempt(float64=False, gradients=False, choices=False, spread=0.1),
)


def verify_groups(model: nn.Module, groups: Sequence[NeuronGroup], run: Run, *, seed: int = 0) -> list[NeuronGroup]:
    """The groups with their status: `verified`, `inert`, or reduced to `incoming_only` with the reason.

    `run(model)` is called once, and recorded. With P a random permutation of the neurons that leaves none in place, f
    the output and L the loss (or, where `run` returns no scalar, a fixed random combination of the outputs),

        residual = max |f(P theta) - f(theta)| / max |f|
        control  = the same with P applied to one slice of the group only
        gradient = max |grad L(P theta) - P grad L(theta)| / max |grad L|

    at theta = perturbed parameters, since norms of ones and biases of zeros hide mistakes. A group is verified
    where residual and gradient are far below the control. It is inert where the output hardly depends on
    it. Otherwise its slices do not make up exchangeable neurons, and only what feeds them is kept.

    All groups are permuted at once: two gradients in all if all is well, and a bisection where it is not. Where a tape
    cannot run in float64, its own precision and a coarser tolerance are used; where it has no gradient, the output
    alone is compared, and `reason` says so. The model is not changed.
    """
    if all(group.status == "incoming_only" for group in groups):
        return list(groups)
    tape = record_run(model, run)
    if tape.obstacle:
        return verify_on_tapes([tape], groups, seed=seed)
    coupling = couple([tape])
    found = assemble(coupling.trace, tape.trainable) if tape.draws else []
    groups = [with_carried(group, found) for group in groups]
    return verify_on_tapes([tape], groups, seed=seed, cheap=fewer_samples([tape], coupling))


def fewer_samples(tapes: Sequence[Tape], coupling: Coupling) -> Iterator[list[Tape]]:
    """The tapes on some of their samples, in each way in which that can be tried."""
    for guess in GUESSES:
        pairs = zip(tapes, coupling.tensors, strict=True)
        cut = [with_fewer_samples(tape, coupling.trace, tensors, guess) for tape, tensors in pairs]
        if any(one is not other for one, other in zip(cut, tapes, strict=True)):
            yield cut


def verify_on_tapes(
    tapes: Sequence[Tape], groups: Sequence[NeuronGroup], *, seed: int = 0, cheap: Iterable[Sequence[Tape]] = ()
) -> list[NeuronGroup]:
    """The groups with their status, as `verify_groups`, by replaying tapes; recorded random draws are permuted too.

    A group must be a symmetry of every tape's loss. `cheap` are the same tapes on fewer samples, in several ways, tried
    first until one runs. What seems inert there may only be left out by those samples, as an expert to which none goes:
    all samples decide.
    """
    usable = [tape for tape in tapes if not tape.obstacle and tape.outputs]
    judged: dict[int, NeuronGroup] = {}
    undecided, reason = (
        list(range(len(groups))),
        next((tape.obstacle for tape in tapes if tape.obstacle), "nothing was returned to compare"),
    )

    def ways() -> Iterator[tuple[Sequence[Tape], Attempt]]:
        for some in cheap:
            if judged:  # they have run on fewer samples already
                break
            yield some, ATTEMPTS[0]
        yield from ((usable, attempt) for attempt in ATTEMPTS)

    for chosen, attempt in ways() if usable else ():
        try:
            chosen_groups = [groups[i] for i in undecided]
            verdicts = Bench(chosen, chosen_groups, seed, attempt).judge(chosen_groups)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.debug("no verification by %s (%s)", attempt, reason)
            continue
        judged.update(zip(undecided, verdicts, strict=True))
        undecided = [i for i in undecided if chosen is not usable and judged[i].status == "inert"]
        if not undecided:
            break
    reason = f"the model did not run on perturbed parameters ({reason})"
    for i, group in enumerate(groups):
        judged.setdefault(i, group if group.status == "incoming_only" else group.with_status("unverified", reason))
    return [without_carried(_noted(judged[i], tapes)) for i in range(len(groups))]


def with_carried(group: NeuronGroup, found: Sequence[NeuronGroup]) -> NeuronGroup:
    """A group with the recorded draws that are permuted with it: those of the found group that shares most with it."""
    alike = [
        (len(set(group.slices) & set(other.slices)), other)
        for other in found
        if (other.n, other.block_shape) == (group.n, group.block_shape)
    ]
    shared, other = max(alike, key=lambda item: item[0], default=(0, group))
    if not shared:
        return group
    drawn = tuple(piece for piece in other.slices if is_carried(piece.param))
    return replace(group, slices=(*group.slices, *drawn))


def without_carried(group: NeuronGroup) -> NeuronGroup:
    """The group's part in parameters and buffers alone."""
    return replace(group, slices=tuple(piece for piece in group.slices if not is_carried(piece.param)))


def _noted(group: NeuronGroup, tapes: Sequence[Tape]) -> NeuronGroup:
    """The verdict, with what it leans on and what contradicts it."""
    unlike = frozenset[str]().union(*(tape.unlike for tape in tapes))
    if group.status in ("verified", "inert") and not unlike.isdisjoint(group.params):
        reason = next(tape.gradient_obstacle for tape in tapes if tape.unlike)
        return group.incoming_only(f"the gradient of the loss is not that of the recorded calls: {reason}")
    reads = {read.operator for tape in tapes for read in tape.host_reads if not read.params.isdisjoint(group.params)}
    if group.status == "verified" and reads:
        note = f"values read by the host ({', '.join(sorted(reads))}) are taken as constants"
        return group.with_status("verified", f"{group.reason}; {note}".removeprefix("; "))
    return group
