"""What finding, proving and gathering neurons costs, for a model shaped as GPT-2 small.

    python -m benchmarks.neurons            # 124 million parameters, a few minutes on two cores
    python -m benchmarks.neurons --small    # 10 million, half a minute

Times are ratios to one training step (forward, backward, AdamW) of the same batch in the same run; gathering
is compared with `torch.cat` of as many bytes into memory allocated before.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_topo.neurons import NeuronGroup, find_neuron_groups, verify_groups


class GPT(nn.Module):
    """A decoder of GPT-2's shape: learned positions, pre-norm blocks, a head tied to the embedding."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int, time: int = 1024) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(time, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(time, device=ids.device)
        x = self.embedding(ids) + self.position(torch.arange(time, device=ids.device))
        logits = self.head(self.blocks(x, mask=mask, is_causal=True))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of some work, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def discovery(model: GPT, ids: Tensor) -> tuple[list[NeuronGroup], list[str]]:
    """Time of a training step, and of finding and verifying groups in units of it."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(ids).backward()
        optimizer.step()

    unit = seconds(step, 3)
    optimizer.zero_grad()
    del optimizer
    groups: list[NeuronGroup] = []
    found = once(lambda: groups.extend(find_neuron_groups(model, ids, verify=False)))
    verified: list[NeuronGroup] = []
    proved = once(lambda: verified.extend(verify_groups(model, groups, lambda module: module(ids))))
    with torch.no_grad():
        forward = seconds(lambda: model(ids), 3)
    statuses = {group.status for group in verified}
    return verified, [
        f"training step             {unit:8.2f} s",
        f"finding {len(groups):3d} groups        {found:8.2f} s = {found / unit:5.2f} training steps",
        f"verifying them            {proved:8.2f} s = {proved / unit:5.2f} training steps, "
        f"{proved / forward / max(len(groups), 1):.2f} forward passes a group; status {', '.join(statuses)}",
    ]


def gathering(model: GPT, groups: Sequence[NeuronGroup]) -> list[str]:
    """Bandwidth of gathering every group into its buffer, beside `torch.cat` of the same number of bytes."""
    parameters = dict(model.named_parameters())
    kinds = dict.fromkeys(group.kind for group in groups)
    return [bandwidth(kind, [g for g in groups if g.kind == kind], parameters) for kind in kinds]


def bandwidth(kind: str, groups: Sequence[NeuronGroup], parameters: Mapping[str, Tensor]) -> str:
    buffers = [group.gather(parameters) for group in groups]
    parts = [[t.clone() for t in buffer.flatten().split(-(-buffer.numel() // 3))] for buffer in buffers]
    joined = [torch.empty(buffer.numel()) for buffer in buffers]
    ours = seconds(lambda: [g.gather(parameters, out=b) for g, b in zip(groups, buffers, strict=True)], 9)
    cat = seconds(lambda: [torch.cat(p, out=j) for p, j in zip(parts, joined, strict=True)], 9)
    size = sum(buffer.numel() * buffer.element_size() for buffer in buffers) / 1e9
    return (
        f"gather {kind:10s} {len(groups):3d} groups {1e3 * size:7.1f} MB  {size / ours:6.2f} GB/s, "
        f"torch.cat {size / cat:6.2f} GB/s, ratio {cat / ours:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the size")
    small = parser.parse_args().small
    torch.manual_seed(0)
    model = GPT(256, 6, 8, 8192) if small else GPT(768, 12, 12, 50257)
    ids = torch.randint(8192, (2, 64))
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, batch {tuple(ids.shape)}"
    )
    groups, lines = discovery(model, ids)
    print("\n".join([*lines, *gathering(model, groups)]))


if __name__ == "__main__":
    main()
