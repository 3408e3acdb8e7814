"""What else is tried of small groups, when all groups were permuted together and nothing has changed.

Let two groups be halves of one: what feeds two neurons, and what reads them. Neither is complete, but if both are
permuted alike, the output stays. Of two neurons there is one derangement, so that this always happens; of n neurons in
b blocks there are (n - 1)!^b cyclic ones to draw from. Groups for which those are few are permuted again in subsets
that have a code: of any two groups of one size, some subset holds one without the other. If A alone changes something,
and A with B does not, then B alone does: it is enough that one of them is seen.

What may only be turned around, as three units in a ring, passes with a cycle, too. In the subsets two neurons of each
block change places: a cycle and such an exchange together do not leave a ring as it is.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_topo.neurons._group import NeuronGroup

_ENOUGH = 10_000
"""Of so many derangements two groups hardly draw the same."""


def subsets_apart(groups: Mapping[int, NeuronGroup]) -> list[list[int]]:
    """Subsets of the small groups: each is in one at least, and any two of one size are apart in one.

    >>> pair, large = NeuronGroup("a", "unit", 2, (), ()), NeuronGroup("b", "unit", 64, (), ())
    >>> subsets_apart({3: pair, 5: pair, 8: large, 9: pair}), subsets_apart({8: large})
    ([[3, 9], [5, 9]], [])
    """
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for key, group in groups.items():
        if group.n_blocks * math.lgamma(group.n) < math.log(_ENOUGH):
            alike[group.n].append(key)
    width = max((len(keys).bit_length() for keys in alike.values()), default=0)
    return [
        sorted(key for keys in alike.values() for code, key in enumerate(keys, start=1) if code >> bit & 1)
        for bit in range(width)
    ]


def block_exchange(group: NeuronGroup, generator: torch.Generator) -> Int[Tensor, " rows"]:
    """Two neurons of every block in each other's place, as an index of rows."""
    rows = torch.arange(group.n_blocks * group.n).view(group.n_blocks, group.n)
    for block in rows:
        pair = torch.randperm(group.n, generator=generator)[:2]
        block[pair] = block[pair.flip(0)]
    return rows.flatten()
