"""Prove groups by permuting their neurons on the tape: the loss must not change, the gradient only be permuted."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from lightning_topo._tape import Tape
from lightning_topo._tape.draws import generators_kept
from lightning_topo.neurons._assembly import assemble, is_carried
from lightning_topo.neurons._bench import DOES_NOT_RUN, Bench
from lightning_topo.neurons._fewer_samples import with_fewer_samples
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._one_run import Run, record_run
from lightning_topo.neurons._sample_axes import GUESSES
from lightning_topo.neurons._tape_coupling import Coupling, couple, equal_constants, parameters_of
from lightning_topo.neurons._trial import Attempt

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
    """Verify groups of neurons by permuting them, and return the groups with their new status.

    `run(model)` runs once and is recorded; the record is then replayed in float64. Let theta be the parameters after a
    random perturbation, since norms of ones and biases of zeros hide mistakes. P is a random permutation of a group's
    neurons that leaves none in place. f is the output, and L the loss, or a fixed random combination of the outputs if
    `run` returns no scalar. Then

        residual = max |f(P theta) - f(theta)| / max |f(theta)|
        control  = the change of f when P is applied to one slice of the group only, relative to f as above
        gradient = max |grad L(P theta) - P grad L(theta)| / max |grad L(theta)|

    The status of a group becomes

    - "verified" if the control is clearly above 0, the residual far below it, and `gradient` near 0. A group with one
      neuron per block has nothing to permute and is "verified" too,
    - "inert" if all three are near 0: the output hardly depends on the group. It is "verified" all the same where the
      gradient in its own parameters, relative to its own size, is permuted and tells the neurons apart, as in the first
      layers of a deep network,
    - "incoming_only" if the residual or `gradient` is too large, or the recorded calls do not give the gradient of the
      loss. The group then keeps only the weights and biases that feed the neurons, and `reason` tells why,
    - "unverified" if the run cannot be replayed at perturbed parameters; `reason` is the error.

    A run that does not work in float64 is replayed in its own precision, with larger tolerances. If it has no gradient,
    the output alone is compared, and `reason` says so. All groups are permuted at once, and halves of them if that
    fails. Small groups are permuted apart as well, by exchanges: two that are wrong could make up for each other, and
    a ring of neurons may be turned. The model is not changed.

    - `model`: The model to which the groups belong.
    - `groups`: The groups to verify; a group that is already "incoming_only" is returned as it is.
    - `run`: Runs the model and returns its outputs or its loss, such as `lambda model: model(inputs)`.
    - `seed`: Draws the permutations and the perturbation of the parameters.
    """
    if all(group.status == "incoming_only" for group in groups):
        return list(groups)
    tape = record_run(model, run)
    if tape.obstacle:
        return verify_on_tapes([tape], groups, seed=seed)
    coupling = couple([tape])
    found = assemble(coupling.trace, parameters_of([tape], coupling.trace)) if tape.draws else []
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
    """Verify groups of neurons by permuting them in recorded steps, and return the groups with their new status.

    A group is "verified" only if it passes the test of `verify_groups` on all tapes together. Slices of recorded random
    draws (dropout masks) in a group are permuted too, and left out of the result.

    - `tapes`: The recorded steps, each passed through `lightning_topo._tape.accepted`; a tape that cannot be replayed
      is left out.
    - `groups`: The groups to verify.
    - `seed`: Draws the permutations and the perturbation of the parameters.
    - `cheap`: Versions of the same tapes on fewer samples, tried in turn until one can be replayed. A group that is
      inert on fewer samples, such as an expert to which no sample is sent, or that does not run permuted there, is
      verified again on all samples.
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
            with generators_kept(*chosen):
                verdicts = Bench(chosen, chosen_groups, seed, attempt).judge(chosen_groups)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.debug("no verification by %s (%s)", attempt, reason)
            continue
        judged.update(zip(undecided, verdicts, strict=True))
        undecided = [i for i in undecided if chosen is not usable and _is_open(judged[i])]
        if not undecided:
            break
    reason = f"the model did not run on perturbed parameters ({reason})"
    for i, group in enumerate(groups):
        judged.setdefault(i, group if group.status == "incoming_only" else group.with_status("unverified", reason))
    return [without_carried(_noted(judged[i], tapes)) for i in range(len(groups))]


def _is_open(group: NeuronGroup) -> bool:
    """Whether a verdict on fewer samples says nothing about all: draws may be laid out by the number of samples."""
    return group.status == "inert" or group.reason.startswith(DOES_NOT_RUN)


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
    if group.status in ("verified", "inert") and not unlike.isdisjoint(group.parameter_names):
        reason = next(tape.gradient_obstacle for tape in tapes if tape.unlike)
        return group.incoming_only(f"the gradient of the loss is not that of the recorded calls: {reason}")
    notes = _leans_on(group, tapes) if group.status == "verified" else []
    return group.with_status("verified", "; ".join(filter(None, [group.reason, *notes]))) if notes else group


def _leans_on(group: NeuronGroup, tapes: Sequence[Tape]) -> list[str]:
    """What a proof takes as constant, although a later step may have it otherwise."""
    notes = []
    own = [read for tape in tapes for read in tape.host_reads if not read.params.isdisjoint(group.parameter_names)]
    if own:
        certain = {read.operator for read in own if read.is_certain}
        perhaps = {read.operator for read in own} - certain
        names = [*sorted(certain), *(f"perhaps {name}" for name in sorted(perhaps))]
        notes.append(f"values read by the host ({', '.join(names)}) are taken as constants")
    if shapes := equal_constants(group, tapes):
        notes.append(f"an attribute of a module with equal entries (shape {', '.join(shapes)}) is taken as constant")
    return notes
