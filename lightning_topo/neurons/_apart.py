"""What else is tried of small groups, when all groups were permuted together and nothing has changed.

Let two groups be halves of one: what feeds two neurons, and what reads them. Neither is complete, but if both are
permuted alike, the output stays. Of two neurons there is one derangement, so that this always happens; of n neurons
there are (n - 1)! cyclic ones to draw from. So the blocks of small groups are permuted again, each in its own way.

The permutations that change nothing are closed under composition. Three units in a ring pass with a cycle, although
they may only be turned. But a cycle c of all n neurons and one exchange of two that follow each other in it, i and
c(i), make up every permutation: what passes with both is exchangeable in every way.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_topo.neurons._group import NeuronGroup

_FEW = 8
"""Of more neurons two blocks hardly draw the same of (n - 1)! cycles."""


def exchanges_apart(
    groups: Mapping[int, NeuronGroup], cycles: Mapping[int, Int[Tensor, " _"]]
) -> list[dict[int, Int[Tensor, " _"]]]:
    """Permutations of the small groups to try one after the other, each group's as an index of its rows.

    In every one some blocks have two neurons exchanged that follow each other in their cycle, and the others stay. Each
    block is exchanged in one at least, and any two of as many neurons differ in one.

    >>> pair, large = NeuronGroup("a", "unit", 2, (), ()), NeuronGroup("b", "unit", 64, (), ())
    >>> turned = torch.tensor([1, 0])
    >>> [list(some) for some in exchanges_apart({3: pair, 5: pair, 9: pair}, {3: turned, 5: turned, 9: turned})]
    [[3, 9], [5, 9]]
    >>> exchanges_apart({8: large}, {})
    []
    """
    blocks: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for key, group in groups.items():
        if 1 < group.n <= _FEW:
            blocks[group.n] += [(key, block) for block in range(group.n_blocks)]
    trials: list[dict[int, Tensor]] = []
    for n, alike in blocks.items():
        ways = n if n > 2 else 1
        for code, (key, block) in enumerate(alike, start=1):
            position = 0
            while code:
                code, way = divmod(code, ways + 1)
                if position == len(trials):
                    trials.append({})
                if way:
                    rows = trials[position].setdefault(key, torch.arange(n * groups[key].n_blocks))
                    here = block * n + way - 1
                    rows[here], rows[cycles[key][here]] = cycles[key][here], here
                position += 1
    return [trial for trial in trials if trial]
