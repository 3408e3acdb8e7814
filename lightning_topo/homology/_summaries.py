"""Numbers that summarise a persistence diagram."""

import torch

from lightning_topo.homology._diagram import PersistenceDiagram


def betti_number(diagram: PersistenceDiagram, k: int, scale: float) -> int:
    """Count the bars of dimension k with birth <= scale < death: the k-th Betti number of the Vietoris-Rips complex.

    `scale` is an edge length, in the units of the cloud.

    >>> from lightning_topo.homology import persistence
    >>> diagram = persistence(torch.tensor([[0.0], [1.0], [5.0]]), max_dim=0)
    >>> [betti_number(diagram, 0, scale) for scale in (0.5, 1.0, 4.0)]
    [3, 2, 1]
    """
    bars = diagram[k]
    return int(((bars.births <= scale) & (scale < bars.deaths)).sum())


def total_persistence(diagram: PersistenceDiagram, k: int, power: float = 1.0) -> float:
    """Sum (death - birth)^power over the finite bars of dimension k.

    >>> from lightning_topo.homology import persistence
    >>> total_persistence(persistence(torch.tensor([[0.0], [1.0], [5.0]]), max_dim=0), 0)
    5.0
    """
    return float(diagram[k].finite().lifetimes.double().pow(power).sum())


def max_persistence(diagram: PersistenceDiagram, k: int) -> float:
    """Return the lifetime, death - birth, of the longest finite bar of dimension k; 0 if there is none.

    >>> from lightning_topo.homology import persistence
    >>> max_persistence(persistence(torch.tensor([[0.0], [1.0], [5.0]]), max_dim=0), 0)
    4.0
    """
    return diagram[k].longest


def persistence_entropy(diagram: PersistenceDiagram, k: int) -> float:
    """Compute the Shannon entropy of the lifetimes of the finite bars of dimension k, in nats.

    It is -Σ p_i log p_i with p_i = l_i / Σ l_j, l_i the lifetime death - birth of bar i. It lies between 0 and the log
    of the number of finite bars of positive length; it is 0 if there are none.

    Source: Chintakunta et al., An entropy-based persistence barcode (2015).

    >>> from lightning_topo.homology import persistence
    >>> entropy = persistence_entropy(persistence(torch.tensor([[0.0], [1.0], [2.0]]), max_dim=0), 0)
    >>> round(entropy, 6)  # log 2
    0.693147
    """
    lifetimes = diagram[k].finite().lifetimes.double()
    lifetimes = lifetimes[lifetimes > 0]
    if len(lifetimes) == 0:
        return 0.0
    p = lifetimes / lifetimes.sum()
    return float(torch.special.entr(p).sum())
