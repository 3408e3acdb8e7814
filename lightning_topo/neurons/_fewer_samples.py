"""A tape on some of its samples: the same program, cheaper to run, with the same symmetries."""

import math
from collections.abc import Mapping

from torch import Tensor

from lightning_topo._tape import Tape
from lightning_topo.neurons._sample_axes import CannotCut, Guess, SampleAxes
from lightning_topo.neurons._trace import CouplingTrace

SHARE = 8
"""One sample in this many is kept ..."""
ENOUGH, MOST = 2, 4
"""... but at least and at most this many ..."""
ENOUGH_TO_NORM, MOST_TO_NORM = 4, 8
"""... or this many if each is divided by the spread of all, which would turn two into +1 and -1 ..."""
HEAVY_BYTES = 1 << 28
"""... and fewer, where it does not, if they take more memory than this in float64."""


def with_fewer_samples(
    tape: Tape, trace: CouplingTrace, tensors: Mapping[int, Tensor], guess: Guess = Guess.NONE
) -> Tape:
    """The tape on its first samples; the tape itself where it has few, or where they cannot be told apart."""
    share = -(-tape.n_samples // SHARE)
    if any("batch_norm" in call.name for call in tape.calls):
        kept = min(max(ENOUGH_TO_NORM, share), MOST_TO_NORM)
    else:
        most = max(1, tape.n_samples * HEAVY_BYTES // max(_wide_bytes(tape), 1))
        kept = min(max(ENOUGH, share), MOST, most)
    if kept >= tape.n_samples:
        return tape
    try:
        return SampleAxes.of(tape, trace, tensors).part(tape, 0, kept, guess)
    except CannotCut:
        return tape


def _wide_bytes(tape: Tape) -> int:
    """The memory that all results together take in float64."""
    made = {slot for call in tape.calls for slot in call.outputs if slot is not None}
    return 8 * sum(math.prod(tape.layouts[slot].shape) for slot in made)
