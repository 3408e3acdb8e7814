"""Attention with dropout inside, by kernels of the tests' own that tell as much as a GPU's: two numbers, or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DROPOUT = 0.4
N, LENGTH, HEADS = 6, 5, 2
TELLING = ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward")


def fill(numbers: Tensor, _: float, seed: int, offset: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + offset)
    return numbers.copy_(torch.rand(numbers.shape, generator=generator))


def parts(q, k, dropout, causal, seed, offset) -> tuple[Tensor, Tensor]:
    """The softmax, and by what it is multiplied."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    kept = fill(torch.empty(scores.shape), dropout, int(seed), int(offset)) > dropout
    return scores.softmax(-1), kept / (1 - dropout)


def forward(q, k, v, bias, _, dropout=0.0, causal=False, *, scale=None):
    seed, offset = torch.randint(10**6, (2,)).unbind()
    weights, factors = parts(q, k, dropout, causal, seed, offset)
    return weights * factors @ v, q.new_zeros(q.shape[:3]), seed, offset


def backward(grad, q, k, v, bias, out, lse, seed, offset, dropout, mask, causal=False, *, scale=None):
    weights, factors = parts(q, k, dropout, causal, seed, offset)
    slopes = grad @ v.transpose(-2, -1) * factors
    slopes = weights * (slopes - (slopes * weights).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
    return slopes @ k, slopes.transpose(-2, -1) @ q, (weights * factors).transpose(-2, -1) @ grad, None


def untold(q, k, v, bias, _, dropout=0.0, causal=False, debug=False, *, scale=None):
    """As the kernel above, but it does not tell its numbers."""
    out, lse, seed, offset = forward(q, k, v, bias, True, dropout, causal)
    return out, lse, None, None, LENGTH, LENGTH, seed, offset, None


def untold_backward(grad, q, k, v, out, lse, seed, offset, bias, *_, scale=None):
    torch.rand(3)
    dropout, causal = _[-2:]
    return backward(grad, q, k, v, bias, out, lse, seed, offset, dropout, None, causal)[:3]


UNTOLD = ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention_backward")


@contextmanager
def kernels() -> Iterator[None]:
    """The CPU has these kernels, too."""
    library = torch.library.Library("aten", "IMPL")
    names = (*TELLING, *UNTOLD, "_fill_mem_eff_dropout_mask_")
    for name, function in zip(names, (forward, backward, untold, untold_backward, fill), strict=True):
        library.impl(name, function, "CPU")
    try:
        yield
    finally:
        library._destroy()


class Block(nn.Module):
    def __init__(self, kernel: str = TELLING[0]) -> None:
        super().__init__()
        self.kernel = getattr(torch.ops.aten, kernel)
        self.tokens, self.qkv, self.head = nn.Embedding(7, 8), nn.Linear(8, 24), nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.tokens(tokens)).view(*tokens.shape, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
        out, *_ = self.kernel(q, k, v, None, True, DROPOUT, True)
        return self.head(out.transpose(1, 2).flatten(2))
