"""The models of the zoo: tiny, randomly initialised, as people build and configure them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model by name, the package that it needs, and how to build it with its inputs."""

    name: str
    requires: str
    build: Callable[[], Built]


ZOO: list[Entry] = []


def entry(name: str, requires: str = "torch") -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a builder into the zoo."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        ZOO.append(Entry(name, requires, build))
        return build

    return enter


class Made(nn.Module):
    """Modules and parameters by name, and what is computed with them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


# Of torch alone


@entry("mlp-hardswish")
def mlp_hardswish() -> Built:
    layers = [nn.Linear(6, 16), nn.Hardswish(), nn.Linear(16, 12), nn.LogSigmoid(), nn.Linear(12, 3)]
    return nn.Sequential(*layers), torch.randn(4, 6)


class SqueezeExcite(nn.Module):
    """As in MobileNetV3: channels scaled by what a small bottleneck makes of their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


@entry("mobilenet-v3-blocks")
def mobilenet_v3() -> Built:
    def block(wide: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(8, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            SqueezeExcite(wide), nn.Conv2d(wide, 8, 1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip

    model = Made(
        lambda m, x: m.head(F.hardswish(m.wide(F.adaptive_avg_pool2d(m.second(m.first(m.stem(x))), 1).flatten(1)))),
        stem=nn.Conv2d(3, 8, 3), first=block(16), second=block(24), wide=nn.Linear(8, 20), head=nn.Linear(20, 3),
    )  # fmt: skip
    return model, torch.randn(2, 3, 12, 12)


@entry("lstm")
def lstm() -> Built:
    model = Made(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(5, 8, 2, batch_first=True), head=nn.Linear(8, 3))
    return model, torch.randn(2, 6, 5)


@entry("gru-bidirectional")
def gru() -> Built:
    rnn = nn.GRU(5, 8, batch_first=True, bidirectional=True)
    return Made(lambda m, x: m.head(m.rnn(x)[0]), rnn=rnn, head=nn.Linear(16, 3)), torch.randn(2, 6, 5)


@entry("transformer")
def transformer() -> Built:
    core = nn.Transformer(16, 4, 2, 2, 24, batch_first=True)
    model = Made(lambda m, x, y: m.head(m.core(x, y)), core=core, head=nn.Linear(16, 3))
    return model, (torch.randn(2, 6, 16), torch.randn(2, 5, 16))


@entry("bilinear")
def bilinear() -> Built:
    model = Made(
        lambda m, x: m.head(F.relu(m.both(m.left(x).tanh(), m.right(x).tanh()))),
        left=nn.Linear(5, 8), right=nn.Linear(5, 6), both=nn.Bilinear(8, 6, 10), head=nn.Linear(10, 3),
    )  # fmt: skip
    return model, torch.randn(4, 5)


@entry("sparse-autoencoder")
def sparse_autoencoder() -> Built:
    """The k largest units are kept, all others set to zero."""

    def code(m: Made, x: Tensor) -> Tensor:
        values, indices = m.encoder(x - m.centre).topk(4, dim=-1)
        return torch.zeros(len(x), 32).scatter(-1, indices, values.relu())

    model = Made(
        lambda m, x: m.decoder(code(m, x)) + m.centre,
        encoder=nn.Linear(6, 32), decoder=nn.Linear(32, 6, bias=False), centre=nn.Parameter(torch.randn(6)),
    )  # fmt: skip
    return model, torch.randn(8, 6)


@entry("radial-basis")
def radial_basis() -> Built:
    model = Made(
        lambda m, x: m.head(torch.exp(-torch.cdist(x, m.centres).square() * m.widths.exp())),
        centres=nn.Parameter(torch.randn(12, 5)), widths=nn.Parameter(torch.zeros(12)), head=nn.Linear(12, 3),
    )  # fmt: skip
    return model, torch.randn(4, 5)


@entry("deep-sets")
def deep_sets() -> Built:
    inner = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12))
    outer = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    return Made(lambda m, x: m.outer(m.inner(x).amax(1)), inner=inner, outer=outer), torch.randn(3, 7, 5)


@entry("committee")
def committee() -> Built:
    """A committee machine: outgoing weights are fixed and equal."""
    return Made(lambda m, x: m.hidden(x).tanh().mean(1), hidden=nn.Linear(6, 20)), torch.randn(4, 6)


@entry("unfold-mixer")
def unfold_mixer() -> Built:
    model = Made(
        lambda m, x: m.last(F.fold(F.unfold(m.first(x), 3, padding=1).tanh(), (8, 8), 3, padding=1)),
        first=nn.Conv2d(3, 10, 1), last=nn.Conv2d(10, 2, 1),
    )  # fmt: skip
    return model, torch.randn(2, 3, 8, 8)


@entry("two-towers")
def two_towers() -> Built:
    model = Made(
        lambda m, i, j: (m.users(i) * m.items(j)).sum(-1), users=nn.Embedding(30, 8), items=nn.Embedding(20, 8)
    )
    return model, (torch.randint(30, (6,)), torch.randint(20, (6,)))


@entry("physics-informed")
def physics_informed() -> Built:
    """Gradients by torch.func inside the forward pass."""
    model = Made(
        lambda m, x: torch.func.vmap(torch.func.grad(lambda row: m.net(row)[0]))(x),
        net=nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 1)),
    )
    return model, torch.randn(5, 2)


@entry("complex-weights")
def complex_weights() -> Built:
    model = Made(
        lambda m, x: m.head((m.first(x).to(torch.complex64) @ m.middle).abs()),
        first=nn.Linear(5, 12), middle=nn.Parameter(torch.randn(12, 8, dtype=torch.complex64)), head=nn.Linear(8, 3),
    )  # fmt: skip
    return model, torch.randn(4, 5)


# Of transformers


def ids(time: int = 8, vocabulary: int = 50) -> Tensor:
    return torch.randint(3, vocabulary, (2, time))


TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GROUPED = {**TINY, "num_key_value_heads": 2}
OLD = {
    "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
IMAGES = {
    "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "num_labels": 3,
}  # fmt: skip
ENCODER_DECODER = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip
HEAD_DIM = {**GROUPED, "head_dim": 4}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SPEECH = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip

CAUSAL = {
    "gptj": ("GPTJ", {**OLD, "rotary_dim": 4}), "gpt-neox": ("GPTNeoX", TINY),
    "bloom": ("Bloom", {**TINY, "n_layer": 2, "n_head": 4}), "opt": ("OPT", {**TINY, "ffn_dim": 24,
    "word_embed_proj_dim": 16}), "codegen": ("CodeGen", {**OLD, "n_ctx": 32, "rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCode", OLD),
    "falcon": ("Falcon", TINY), "falcon-alibi": ("Falcon", {**TINY, "multi_query": False, "alibi": True}),
    "falcon-40b": ("Falcon", {**TINY, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "llama": ("Llama", GROUPED), "mistral": ("Mistral", GROUPED), "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", HEAD_DIM), "gemma": ("Gemma", HEAD_DIM), "gemma2": ("Gemma2", HEAD_DIM),
    "phi": ("Phi", GROUPED), "phi3": ("Phi3", GROUPED), "olmo2": ("Olmo2", GROUPED),
    "stablelm": ("StableLm", GROUPED), "starcoder2": ("Starcoder2", GROUPED), "cohere": ("Cohere", GROUPED),
    "granite": ("Granite", GROUPED), "nemotron": ("Nemotron", GROUPED), "mixtral": ("Mixtral", EXPERTS),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 4}), "mpt": ("Mpt", {"vocab_size": 50, "d_model": 16,
    "n_heads": 4, "n_layers": 2, "max_seq_len": 32}),
    "mamba": ("Mamba", {**TINY, "state_size": 6}),
    "mamba2": ("Mamba2", {**TINY, "state_size": 6, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}),
    "mamba2-one-group": ("Mamba2", {**TINY, "state_size": 6, "num_heads": 4, "head_dim": 8, "n_groups": 1,
    "chunk_size": 4}),
}  # fmt: skip
MASKED = {
    "bert": ("Bert", TINY), "roberta": ("Roberta", TINY), "albert": ("Albert", {**TINY, "embedding_size": 8}),
    "electra": ("Electra", {**TINY, "embedding_size": 16}), "deberta": ("Deberta", {**TINY,
    "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("DebertaV2", {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "distilbert": ("DistilBert", {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24,
    "max_position_embeddings": 32}), "fnet": ("FNet", TINY), "modernbert": ("ModernBert", {**TINY,
    "cls_token_id": 0, "sep_token_id": 1}), "nystromformer": ("Nystromformer", {**TINY, "num_landmarks": 4,
    "segment_means_seq_len": 8, "conv_kernel_size": 3}),
}  # fmt: skip
SEQUENCE_TO_SEQUENCE = {
    "t5": ("T5", {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0}), "bart": ("Bart", ENCODER_DECODER), "marian": ("Marian", ENCODER_DECODER),
}  # fmt: skip
PICTURES = {
    "vit": ("ViT", IMAGES), "deit": ("DeiT", IMAGES), "beit": ("Beit", {**IMAGES,
    "use_relative_position_bias": True}), "dinov2": ("Dinov2", {**IMAGES, "mlp_ratio": 2}),
    "swin": ("Swin", {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4],
    "window_size": 2, "num_labels": 3}), "convnext": ("ConvNext", {"hidden_sizes": [8, 12], "depths": [2, 2],
    "num_stages": 2, "num_labels": 3}), "convnextv2": ("ConvNextV2", {"hidden_sizes": [8, 12], "depths": [2, 2],
    "num_stages": 2, "num_labels": 3}), "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16],
    "depths": [2, 2], "num_labels": 3}), "regnet": ("RegNet", {"embedding_size": 8, "hidden_sizes": [8, 16],
    "depths": [2, 2], "groups_width": 4, "num_labels": 3}),
    "mobilenet-v2": ("MobileNetV2", {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 3}),
    "segformer": ("Segformer", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2,
    "sr_ratios": [2, 1], "num_attention_heads": [2, 4], "patch_sizes": [7, 3], "strides": [4, 2],
    "mlp_ratios": [2, 2], "num_labels": 3}), "poolformer": ("PoolFormer", {"hidden_sizes": [8, 12, 12, 12],
    "depths": [1, 1, 1, 1], "num_labels": 3}),
}  # fmt: skip
LEVIT = {
    "image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
    "key_dim": [4, 4, 4], "down_ops": [["Subsample", 4, 2, 4, 2, 2], ["Subsample", 4, 2, 4, 2, 2]], "num_labels": 3,
}  # fmt: skip
SIZES = {"mobilenet-v2": 32, "segformer": 32, "poolformer": 64}


def of_transformers(kind: str, family: str, options: dict[str, Any]) -> nn.Module:
    """A model by its family and its head, with random weights."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}{kind}")(config)


def _with_labels(kind: str, family: str, options: dict[str, Any]) -> Built:
    inputs = ids()
    return of_transformers(kind, family, options), {"input_ids": inputs, "labels": inputs}


def _pictures(name: str, family: str, options: dict[str, Any]) -> Built:
    size = SIZES.get(name, 16)
    return of_transformers("ForImageClassification", family, options), {"pixel_values": torch.randn(2, 3, size, size)}


def _levit() -> Built:
    """Without its cache of attention biases, which in evaluation mode outlives a change of the parameters."""

    def uncached(m: Made, pictures: Tensor) -> Tensor:
        for module in m.net.modules():
            if hasattr(module, "attention_bias_cache"):
                module.attention_bias_cache = {}
        return m.net(pixel_values=pictures).logits

    return Made(uncached, net=of_transformers("ForImageClassification", "Levit", LEVIT)), torch.randn(2, 3, 64, 64)


def _speech(family: str) -> Built:
    inputs = {"input_values": torch.randn(2, 400), "labels": torch.randint(1, 20, (2, 3))}
    return of_transformers("ForCTC", family, SPEECH), inputs


def _whisper() -> Built:
    features = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 32}
    model = of_transformers("ForConditionalGeneration", "Whisper", {**ENCODER_DECODER, **features})
    return model, {"input_features": torch.randn(2, 8, 20), "labels": ids()}


def _clip() -> Built:
    import transformers

    config = transformers.CLIPConfig(text_config=dict(TINY), vision_config=IMAGES, projection_dim=12)
    return transformers.CLIPModel(config), {
        "input_ids": ids(), "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True,
    }  # fmt: skip


for kind, models in (
    ("ForCausalLM", CAUSAL),
    ("LMHeadModel", {"gpt2": ("GPT2", OLD)}),
    ("ForMaskedLM", MASKED),
    ("ForConditionalGeneration", {name: SEQUENCE_TO_SEQUENCE[name] for name in ("t5", "bart")}),
    ("MTModel", {"marian": SEQUENCE_TO_SEQUENCE["marian"]}),
):
    for name, (family, options) in models.items():
        entry(name, "transformers")(lambda k=kind, f=family, o=options: _with_labels(k, f, o))
for name, (family, options) in PICTURES.items():
    entry(name, "transformers")(lambda n=name, f=family, o=options: _pictures(n, f, o))
for name, family in (("wav2vec2", "Wav2Vec2"), ("hubert", "Hubert")):
    entry(name, "transformers")(lambda f=family: _speech(f))
entry("levit", "transformers")(_levit)
entry("whisper", "transformers")(_whisper)
entry("clip", "transformers")(_clip)


# Of others, where they are installed


@entry("lora", "peft")
def lora() -> Built:
    import peft

    model = of_transformers("ForCausalLM", "Llama", GROUPED)
    inputs = ids()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    return peft.get_peft_model(model, config), {"input_ids": inputs, "labels": inputs}


@entry("graph-convolution", "torch_geometric")
def graph_convolution() -> Built:
    from torch_geometric.nn import GCN

    edges = torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])
    return GCN(5, 12, 3, 3), (torch.randn(8, 5), edges)


@entry("barlow-twins", "lightly")
def barlow_twins() -> Built:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead

    loss = BarlowTwinsLoss()
    model = Made(
        lambda m, x, y: loss(m.head(m.body(x)), m.head(m.body(y))),
        body=nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)),
        head=BarlowTwinsProjectionHead(12, 16, 8),
    )
    return model, (torch.randn(8, 6), torch.randn(8, 6))


@entry("temporal-fusion-transformer", "pytorch_forecasting")
def temporal_fusion_transformer() -> Built:
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer

    sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "output_size": 3}
    inputs = {"x_reals": ["time", "value"], "static_categoricals": [], "x_categoricals": [], "embedding_sizes": {}}
    read = {"time_varying_reals_encoder": ["time", "value"], "time_varying_reals_decoder": ["time"]}
    loss = QuantileLoss([0.1, 0.5, 0.9])
    model = TemporalFusionTransformer(
        **sizes, **inputs, **read, loss=loss, max_encoder_length=6, output_transformer=lambda out: out["prediction"]
    )
    series = {"encoder_cont": torch.randn(4, 6, 2), "decoder_cont": torch.randn(4, 3, 2)}
    none = {"encoder_cat": torch.zeros(4, 6, 0).long(), "decoder_cat": torch.zeros(4, 3, 0).long()}
    lengths = {"encoder_lengths": torch.full((4,), 6), "decoder_lengths": torch.full((4,), 3)}
    batch = {**series, **none, **lengths, "target_scale": torch.ones(4, 2)}
    return Made(lambda m: m.net(batch)["prediction"], net=model), ()


TORCHVISION = (
    "resnet18", "resnext50_32x4d", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "densenet121",
    "squeezenet1_1", "regnet_y_400mf", "googlenet",
)  # fmt: skip
TIMM = (
    "levit_128s", "eva02_tiny_patch14_224", "mobilevitv2_050", "mixer_s32_224", "poolformer_s12",
    "convnext_atto", "vit_tiny_patch16_224", "efficientvit_b0", "xcit_nano_12_p16_224", "ghostnet_050",
)  # fmt: skip


def _of_torchvision(name: str) -> Built:
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=5, **options), torch.randn(2, 3, 64, 64)


def _of_timm(name: str) -> Built:
    import timm

    size = timm.create_model(name).default_cfg["input_size"][-1]
    return timm.create_model(name, num_classes=5), torch.randn(2, 3, size, size)


for name in TORCHVISION:
    entry(f"torchvision {name}", "torchvision")(lambda n=name: _of_torchvision(n))
for name in TIMM:
    entry(f"timm {name}", "timm")(lambda n=name: _of_timm(n))
