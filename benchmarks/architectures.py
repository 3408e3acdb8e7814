"""Small randomly initialised models, one for each architecture whose neurons the package must find."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a model and its inputs, and how many groups of each kind it has."""

    name: str
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor]]]
    expected: Mapping[str, int]
    requires: str = ""


ARCHITECTURES: list[Architecture] = []


def architecture(name: str, *, requires: str = "", **expected: int) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a builder into the list, with the number of groups of each kind."""

    def enter(build: Callable[[], Any]) -> Callable[[], Any]:
        ARCHITECTURES.append(Architecture(name, build, expected, requires))
        return build

    return enter


def tokens(time: int = 8, vocabulary: int = 50) -> Tensor:
    return torch.randint(vocabulary, (2, time))


class Residual(nn.Module):
    """x + f(x), with a projection of x where the shapes differ."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut = inner, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.inner(x)


@architecture("MLP", unit=2)
def mlp() -> Any:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    return model, (torch.randn(4, 6),)


@architecture("CNN with BatchNorm, flattened into a linear head", channel=2, unit=1)
def cnn() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 2 * 2, 16), nn.ReLU(), nn.Linear(16, 4),
    ), (torch.randn(2, 1, 14, 14),)  # fmt: skip


def basic_block(width_in: int, width: int, stride: int) -> nn.Module:
    inner = nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
    )  # fmt: skip
    if stride == 1 and width == width_in:
        return nn.Sequential(Residual(inner), nn.ReLU())
    shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    return nn.Sequential(Residual(inner, shortcut), nn.ReLU())


@architecture("ResNet-18 (narrow)", channel=8, residual=4)
def resnet() -> Any:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    width = 8
    for wider, stride in ((8, 1), (16, 2), (24, 2), (32, 2)):
        layers += [basic_block(width, wider, stride), basic_block(wider, wider, 1)]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)), (
        torch.randn(2, 3, 16, 16),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(pooled))))


@architecture("MobileNet block (depthwise, squeeze-excite) and grouped convolution", channel=5, residual=1)
def mobilenet() -> Any:
    inner = nn.Sequential(
        nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        SqueezeExcite(24, 6), nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), Residual(inner), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    ), (torch.randn(2, 3, 12, 12),)  # fmt: skip


class Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.dims)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


@architecture("ConvNeXt", unit=2, residual=1)
def convnext() -> Any:
    blocks = [
        Residual(
            nn.Sequential(
                nn.Conv2d(12, 12, 7, padding=3, groups=12),
                Permute(0, 2, 3, 1),
                nn.LayerNorm(12),
                nn.Linear(12, 24),
                nn.GELU(),
                nn.Linear(24, 12),
                LayerScale(12),
                Permute(0, 3, 1, 2),
            )
        )
        for _ in range(2)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(12),
        nn.Linear(12, 4),
    ), (torch.randn(2, 3, 16, 16),)


class UNet(nn.Module):
    """Skips joined by concatenation, upsampling by transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.double(3, 8), self.double(8, 12)
        self.middle = self.double(12, 16)
        self.lift2, self.up2 = nn.ConvTranspose2d(16, 10, 2, 2), self.double(10 + 12, 12)
        self.lift1, self.up1 = nn.ConvTranspose2d(12, 6, 2, 2), self.double(6 + 8, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def double(width_in: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(width_in, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        middle = self.middle(F.max_pool2d(coarse, 2))
        y = self.up2(torch.cat([coarse, self.lift2(middle)], 1))
        return self.head(self.up1(torch.cat([fine, self.lift1(y)], 1)))


@architecture("U-Net with concatenated skips", channel=12)
def unet() -> Any:
    return UNet(), (torch.randn(2, 3, 8, 8),)


@architecture("Transposed convolutions (generator)", channel=3)
def generator() -> Any:
    return nn.Sequential(
        nn.ConvTranspose2d(5, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 1, 1),
    ), (torch.randn(2, 5, 1, 1),)  # fmt: skip


class EncoderClassifier(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.position = nn.Parameter(0.02 * torch.randn(1, 8, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids) + self.position).mean(1))


@architecture("nn.TransformerEncoderLayer", unit=2, head=2, head_dim=4, residual=1)
def encoder() -> Any:
    return EncoderClassifier(), (tokens(),)


class AttentionPool(nn.Module):
    """Learned queries, keys and values of another width: three projections in nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 16))
        self.inputs = nn.Linear(6, 12)
        self.attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.tanh(self.inputs(x))
        pooled, _ = self.attention(self.queries.expand(len(x), -1, -1), memory, memory, need_weights=False)
        return self.head(pooled.tanh()).mean(1)


@architecture("nn.MultiheadAttention, separate projections", unit=4, head=1, head_dim=2)
def attention() -> Any:
    return AttentionPool(), (torch.randn(2, 7, 6),)


@architecture("GPT-2 (tied embeddings)", requires="transformers", unit=2, head=2, head_dim=4, residual=1)
def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    ids = tokens()
    return GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


LLAMA = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


@architecture(
    "Llama (rotary, grouped-query attention, SwiGLU, RMSNorm)",
    requires="transformers", unit=2, head=4, head_dim=2, residual=1,
)  # fmt: skip
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = tokens()
    return LlamaForCausalLM(LlamaConfig(**LLAMA)), {"input_ids": ids, "labels": ids}


@architecture("ViT", requires="transformers", unit=2, head=2, head_dim=4, residual=1)
def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=16,
        patch_size=8, num_labels=4,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


class FusedAttention(nn.Module):
    """One projection for queries, keys and values, taken apart with unbind, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        fused = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = fused.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, time, width))


@architecture("Fused query-key-value (timm style)", unit=2, head=1, head_dim=2, residual=1)
def fused() -> Any:
    feed_forward = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
    attend = nn.Sequential(nn.LayerNorm(16), FusedAttention(16, 4))
    return nn.Sequential(
        nn.Linear(6, 16),
        Residual(attend),
        Residual(feed_forward),
        nn.Linear(16, 12),
        nn.GELU(),
        nn.Linear(12, 4),
    ), (torch.randn(2, 7, 6),)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding, self.recurrent, self.head = nn.Embedding(50, 6), layer, nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0][:, -1])


@architecture("LSTM, two layers, both directions", recurrent=4, unit=1)
def lstm() -> Any:
    return Recurrent(nn.LSTM(6, 10, 2, batch_first=True, bidirectional=True), 20), (tokens(5),)


@architecture("GRU", recurrent=2, unit=1)
def gru() -> Any:
    return Recurrent(nn.GRU(6, 10, 2, batch_first=True), 10), (tokens(5),)


@architecture("LayerNorm and RMSNorm", unit=2)
def norms() -> Any:
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.RMSNorm(10),
        nn.SiLU(),
        nn.Linear(10, 4),
    ), (torch.randn(4, 6),)


@architecture("GroupNorm (channels inside groups, and the groups)", channel=3)
def group_norm() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ), (torch.randn(2, 3, 8, 8),)  # fmt: skip


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode1, self.encode2 = nn.Linear(6, 12), nn.Linear(12, 5)
        self.bias2, self.bias1 = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encode2(torch.tanh(self.encode1(x))))
        hidden = torch.tanh(F.linear(code, self.encode2.weight.T, self.bias2))
        return F.linear(hidden, self.encode1.weight.T, self.bias1)


@architecture("Weight-tied autoencoder", unit=2)
def autoencoder() -> Any:
    return TiedAutoencoder(), (torch.randn(4, 6),)


class ListedExperts(nn.Module):
    """The two best of four experts, which are modules of their own."""

    def __init__(self, width: int = 8, hidden: int = 12, experts: int = 4) -> None:
        super().__init__()
        self.inputs, self.router, self.head = (
            nn.Linear(6, width),
            nn.Linear(width, experts),
            nn.Linear(width, 4),
        )
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inputs(x))
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            if token.numel():
                mixed = mixed.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return self.head(mixed)


@architecture("Mixture of experts, modules chosen by a router", unit=6, expert=1)
def listed_experts() -> Any:
    return ListedExperts(), (torch.randn(32, 6),)


class StackedExperts(nn.Module):
    """All experts, weighted by a softmax, as parameters of three axes."""

    def __init__(self, width: int = 8, hidden: int = 12, experts: int = 4) -> None:
        super().__init__()
        self.inputs, self.router, self.head = (
            nn.Linear(6, width),
            nn.Linear(width, experts),
            nn.Linear(width, 4),
        )
        self.up = nn.Parameter(0.2 * torch.randn(experts, width, hidden))
        self.down = nn.Parameter(0.2 * torch.randn(experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inputs(x))
        hidden = F.gelu(torch.einsum("bd,edh->beh", x, self.up))
        return self.head(torch.einsum("beh,ehd,be->bd", hidden, self.down, self.router(x).softmax(-1)))


@architecture("Mixture of experts, stacked and dense", unit=3, expert=1)
def stacked_experts() -> Any:
    return StackedExperts(), (torch.randn(8, 6),)


@architecture("Mixtral (sparse experts)", requires="transformers", unit=1, expert=1, head=2, head_dim=1, residual=1)
def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    ids = tokens(12)
    config = MixtralConfig(**{**LLAMA, "num_hidden_layers": 1}, num_local_experts=4)
    return MixtralForCausalLM(config), {"input_ids": ids, "labels": ids}


class LoRALinear(nn.Module):
    """A frozen linear map and a trained one of low rank beside it."""

    def __init__(self, width_in: int, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width_in, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width_in, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@architecture("LoRA-adapted linear layers", unit=3)
def lora() -> Any:
    return nn.Sequential(LoRALinear(6, 12, 3), nn.Tanh(), LoRALinear(12, 4, 2)), (torch.randn(4, 6),)


@architecture("weight_norm", unit=2)
def weight_norm() -> Any:
    normed = parametrizations.weight_norm
    return nn.Sequential(
        normed(nn.Linear(6, 12)), nn.Tanh(), normed(nn.Linear(12, 10)), nn.Tanh(), normed(nn.Linear(10, 4))
    ), (torch.randn(4, 6),)


@architecture("spectral_norm", unit=2)
def spectral_norm() -> Any:
    normed = parametrizations.spectral_norm
    return nn.Sequential(
        normed(nn.Linear(6, 12)), nn.Tanh(), normed(nn.Linear(12, 10)), nn.Tanh(), normed(nn.Linear(10, 4))
    ), (torch.randn(4, 6),)


@architecture("Frozen layers", unit=2)
def frozen() -> Any:
    model, inputs = mlp()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model, inputs


@dataclass(frozen=True, slots=True)
class Built:
    """A built architecture."""

    model: nn.Module
    inputs: tuple[Tensor, ...] | dict[str, Tensor] = field(default_factory=tuple)


def built(entry: Architecture, seed: int = 0) -> Built:
    """The model, from a fixed seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Built(*entry.build())
