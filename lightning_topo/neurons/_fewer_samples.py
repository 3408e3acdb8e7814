"""A tape on some of its samples: the same program, cheaper to run, with the same symmetries."""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from lightning_topo._tape import Slot, Tape
from lightning_topo.neurons._sample_axes import CannotCut, Guess, SampleAxes
from lightning_topo.neurons._trace import CouplingTrace

SHARE = 8
"""One sample in this many is kept ..."""
ENOUGH, MOST = 2, 4
"""... but at least and at most this many ..."""
ENOUGH_TO_NORM, MOST_TO_NORM = 16, 8
"""... or, where batch norm divides each entry of a channel by the spread of all, which would turn two entries into +1
and -1, as many samples as have 16 entries together, but at most 8 ..."""
HEAVY_BYTES = 1 << 28
"""... and fewer, as far as batch norm lets them, if they take more memory than this in float64."""


def with_fewer_samples(
    tape: Tape, trace: CouplingTrace, tensors: Mapping[int, Tensor], guess: Guess = Guess.NONE
) -> Tape:
    """The tape on its first samples; the tape itself where it has few, or where they cannot be told apart."""
    share = -(-tape.n_samples // SHARE)
    # Never one: of a single sample torch's CPU kernel for batch norm can have a wrong gradient (2.13).
    to_norm = [min(max(ENOUGH, -(-ENOUGH_TO_NORM // entries)), MOST_TO_NORM) for entries in _entries_to_norm(tape)]
    lightest = max(1, tape.n_samples * HEAVY_BYTES // max(_wide_bytes(tape), 1))
    kept = max([min(max(ENOUGH, share), MOST, lightest), *to_norm])
    if kept >= tape.n_samples:
        return tape
    try:
        return SampleAxes.of(tape, trace, tensors).part(tape, 0, kept, guess)
    except CannotCut:
        return tape


def _entries_to_norm(tape: Tape) -> Iterator[int]:
    """How many entries of a channel a sample gives to each batch norm; enough to one by gathered statistics."""
    for call in tape.calls:
        if "batch_norm" in call.name and call.argument("training") is False:
            yield ENOUGH_TO_NORM
        elif "batch_norm" in call.name:
            normed = call.argument("input")
            yield max(math.prod(tape.layouts[normed.index].shape[2:]), 1) if isinstance(normed, Slot) else 1


def _wide_bytes(tape: Tape) -> int:
    """The memory that all results together take in float64."""
    made = {slot for call in tape.calls for slot in call.outputs if slot is not None}
    return 8 * sum(math.prod(tape.layouts[slot].shape) for slot in made)
