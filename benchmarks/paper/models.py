"""Two small models beyond the paper's, and their data: a CNN on digits, a GPT on the standard library's own source."""

import importlib.util
import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

MODULES = ("argparse", "ast", "dataclasses", "functools", "inspect", "json.decoder", "pathlib", "typing")
"""Whose source the GPT reads."""
VOCABULARY = 128

Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A pre-norm transformer block: causal attention with fused query, key and value, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A decoder over characters, with learned positions."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, time: int = 32) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "tokens classes"]:
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


class CNN(nn.Sequential):
    """Two 3 x 3 convolutions with batch norm, pooling, and a hidden layer, on images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.norm_1, self.relu_1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.conv_2, self.norm_2, self.relu_2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()
        self.pool, self.flat = nn.AvgPool2d(2), nn.Flatten()
        self.hidden, self.relu_3, self.head = nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)


def source_batches(n: int, size: int = 16, time: int = 32, seed: int = 0) -> Batches:
    """n batches of random passages, each with the same passages one character on as targets."""
    text = "".join(Path(str(_origin(name))).read_text(encoding="utf-8") for name in MODULES)
    ids = torch.tensor([min(ord(character), VOCABULARY - 1) for character in text])
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n):
        starts = torch.randint(len(ids) - time, (size, 1), generator=generator)
        passages = ids[starts + torch.arange(time + 1)]
        batches.append((passages[:, :-1], passages[:, 1:].flatten()))
    return batches


def digit_batches(n: int, size: int = 64, seed: int = 0) -> Batches:
    """n random batches of scikit-learn's digits, as images."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8.0 - 1.0
    y = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(x), (size,), generator=generator) for _ in range(n)]
    return [(x[batch], y[batch]) for batch in chosen]


def warm_cosine(step: int, steps: int, warm_up: int) -> float:
    """The factor of the learning rate: a linear rise over `warm_up` steps, then half a cosine down to 0.

    >>> [round(warm_cosine(step, 10, 2), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def _origin(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin
