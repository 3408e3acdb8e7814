"""The rows of an embedding as a cloud of their own: modular addition bends them into loops.

    python -m examples.modular_addition [--steps 600]

A network learns a + b modulo 23 from all pairs. `rows("tok_emb.weight")` makes the 23 rows of its embedding a group,
beside the neurons that are found. At first they are 23 points at random; in the end they lie on loops, because that is
how the network adds: by angles (Nanda et al., arXiv:2301.05217). The longest bar of H1 says so, without being told of
angles, and the Fourier spectrum of the embedding, printed beside it, agrees. Takes seconds on a CPU.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo import Persistence, TopologyWatch, rows
from lightning_topo.outputs.record import RunRecord, read_record

MODULUS = 23


class Adder(nn.Module):
    """Two tokens in, logits of their sum out."""

    def __init__(self, width: int = 4, hidden: int = 64, modulus: int = MODULUS) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(modulus, width)
        self.hidden = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, modulus, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(self.tok_emb(pairs).sum(dim=1))))


def all_sums(modulus: int) -> tuple[Tensor, Tensor]:
    """All pairs of tokens, and their sums."""
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    return pairs, pairs.sum(dim=1) % modulus


def train(steps: int, folder: str | Path, seed: int = 0) -> tuple[Adder, RunRecord, float]:
    """Train on all pairs; the model, the record, and the share of sums that it gets right."""
    torch.manual_seed(seed)
    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0)
    pairs, sums = all_sums(MODULUS)
    probes = [Persistence(every_n_steps=max(steps // 10, 1))]
    groups = ["auto", rows("tok_emb.weight")]
    with TopologyWatch(model, optimizer, probes, groups=groups, dirpath=folder, planned_steps=steps) as watch:
        for _ in range(steps):
            with watch.step(pairs):
                watch.loss(F.cross_entropy(model(pairs), sums)).backward()
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad():
        right = (model(pairs).argmax(dim=1) == sums).float().mean()
    return model, read_record(Path(folder)), float(right)


def loops(record: RunRecord) -> dict[int, float]:
    """By step, how long the longest loop of the embedding lasts: its death over its birth."""
    found = {}
    for step in record.diagram_steps:
        bars = record.diagrams(step)["tok_emb.rows"][1]
        found[step] = float((bars.deaths / bars.births).max()) if len(bars) else 1.0
    return found


def spectrum(model: Adder) -> list[float]:
    """The share of each frequency in the embedding, largest first."""
    power = torch.fft.rfft(model.tok_emb.weight.detach(), dim=0).abs().square().sum(dim=1)[1:]
    return sorted((power / power.sum()).tolist(), reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="the run folder; by default a temporary one")
    options = parser.parse_args()
    model, record, right = train(options.steps, options.folder or Path(tempfile.mkdtemp()) / "topology")
    for step, length in loops(record).items():
        print(f"step {step:5,}: the longest loop of the embedding is gone at {length:.2f} times the scale it begins at")
    largest = ", ".join(f"{share:.0%}" for share in spectrum(model)[:3])
    print(f"{right:.0%} of all sums are right; shares of the largest frequencies of the embedding: {largest}")
    print(f"The record and the page are in {record.dirpath}")


if __name__ == "__main__":
    main()
