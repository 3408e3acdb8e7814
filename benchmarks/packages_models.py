"""Trainings of models that packages bring, on random tensors, set up as their own examples do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Built = tuple[L.LightningModule, DataLoader]


@dataclass(frozen=True, slots=True)
class Training:
    """How to build a module with its data, what that needs, and what its Trainer is given besides."""

    build: Callable[[], Built]
    requires: tuple[str, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict)


TRAININGS: dict[str, Training] = {}


def training(name: str, *requires: str, **trainer: Any) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a builder into the table."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        TRAININGS[name] = Training(build, requires, trainer)
        return build

    return enter


class Items(Dataset):
    """Rows of random tensors, drawn once."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[index] for name, rows in self.tensors.items()}


def loader(batch: int, **tensors: Tensor) -> DataLoader:
    return DataLoader(Items(**tensors), batch_size=batch, shuffle=True)


class Supervised(L.LightningModule):
    """A model whose output has a loss, with AdamW and warm-up."""

    def __init__(self, model: nn.Module, lr: float = 3e-4) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tokens(rows: int, time: int, vocabulary: int = 200) -> Tensor:
    return torch.randint(3, vocabulary, (rows, time))


SMALL = {
    "vocab_size": 200, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
PICTURE = {
    "image_size": 32, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 192, "num_labels": 10,
}  # fmt: skip


def _of_transformers(name: str, **options: Any) -> nn.Module:
    import transformers

    family = name.split("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    return getattr(transformers, name)(getattr(transformers, f"{family}Config")(**options))


def _text(name: str, options: dict[str, Any], **trainer: Any) -> None:
    def build() -> Built:
        rows = tokens(256, 48)
        return Supervised(_of_transformers(name, **options)), loader(8, input_ids=rows, labels=rows)

    training(f"transformers {name}", "transformers", **trainer)(build)


def _picture(name: str, options: dict[str, Any], size: int = 32, **trainer: Any) -> None:
    def build() -> Built:
        data = {"pixel_values": torch.randn(256, 3, size, size), "labels": torch.randint(10, (256,))}
        return Supervised(_of_transformers(name, **options)), loader(16, **data)

    training(f"transformers {name}", "transformers", **trainer)(build)


_text(
    "GPT2LMHeadModel",
    {
        "vocab_size": 200,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
)
_text("BertForMaskedLM", SMALL, gradient_clip_val=1.0)
_text("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}, accumulate_grad_batches=2)
_text(
    "MixtralForCausalLM",
    {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
)
_text("MambaForCausalLM", {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8})
_text(
    "T5ForConditionalGeneration",
    {"vocab_size": 200, "d_model": 96, "d_kv": 24, "d_ff": 192, "num_layers": 2, "num_heads": 4,
     "decoder_start_token_id": 0},
)  # fmt: skip
_picture("ViTForImageClassification", PICTURE, precision="bf16-mixed")
_picture(
    "ResNetForImageClassification",
    {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "layer_type": "basic", "num_labels": 10},
)
_picture(
    "ConvNextForImageClassification",
    {"hidden_sizes": [32, 64], "depths": [2, 2], "num_stages": 2, "num_labels": 10, "drop_path_rate": 0.1},
)
_picture(
    "SwinForImageClassification",
    {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
     "num_labels": 10},
)  # fmt: skip


@training("transformers ViTMAEForPreTraining", "transformers")
def masked_autoencoder() -> Built:
    decoder = {"decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    model = _of_transformers("ViTMAEForPreTraining", **{**PICTURE, **decoder, "decoder_intermediate_size": 128})
    return Supervised(model), loader(16, pixel_values=torch.randn(256, 3, 32, 32))


@training("transformers Wav2Vec2ForCTC", "transformers")
def speech() -> Built:
    """Draws its masks from NumPy."""
    options = {
        "vocab_size": 20, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
        "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 8, 3), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.2, "mask_time_length": 2,
        "ctc_loss_reduction": "mean", "ctc_zero_infinity": True,
    }  # fmt: skip
    model = _of_transformers("Wav2Vec2ForCTC", **options)
    return Supervised(model), loader(4, input_values=torch.randn(64, 4000), labels=torch.randint(1, 20, (64, 6)))


@training("peft LoRA on GPT2", "peft", "transformers")
def low_rank() -> Built:
    import peft

    base = _of_transformers(
        "GPT2LMHeadModel",
        vocab_size=200,
        n_embd=128,
        n_layer=4,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    rows = tokens(256, 48)
    return Supervised(model, 1e-3), loader(8, input_ids=rows, labels=rows)


class Graphs(L.LightningModule):
    """A graph network on a batch of graphs, with Adam."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(64, 3)

    def training_step(self, batch: Any, index: int) -> Tensor:
        from torch_geometric.nn import global_add_pool

        nodes = self.network(batch.x, batch.edge_index)
        return F.cross_entropy(self.head(global_add_pool(nodes, batch.batch)), batch.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _graphs(name: str) -> None:
    def build() -> Built:
        from torch_geometric import nn as networks
        from torch_geometric.data import Data
        from torch_geometric.loader import DataLoader as GraphLoader

        graphs = [
            Data(x=torch.randn(30, 16), edge_index=torch.randint(30, (2, 90)), y=torch.randint(3, (1,)))
            for _ in range(256)
        ]
        network = getattr(networks, name)(16, 64, num_layers=4, out_channels=64, dropout=0.1)
        return Graphs(network), GraphLoader(graphs, batch_size=32, shuffle=True)

    training(f"torch_geometric {name}", "torch_geometric")(build)


for _name in ("GIN", "GAT"):
    _graphs(_name)


@training("diffusers UNet2DModel", "diffusers")
def diffusion() -> Built:
    """Noise prediction, as in the package's own training example."""
    from diffusers import DDPMScheduler, UNet2DModel

    class Denoiser(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = UNet2DModel(
                sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
                norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )  # fmt: skip
            self.noise = DDPMScheduler(num_train_timesteps=100)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            images = batch["images"]
            noise, times = torch.randn_like(images), torch.randint(0, 100, (len(images),))
            return F.mse_loss(self.model(self.noise.add_noise(images, noise, times), times).sample, noise)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    return Denoiser(), loader(8, images=torch.randn(128, 3, 16, 16))


@training("lightning LightningTransformer", gradient_clip_val=0.25)
def lightning_transformer() -> Built:
    from lightning.pytorch.demos.transformer import LightningTransformer

    class Offline(LightningTransformer):
        def prepare_data(self) -> None:
            """Downloads nothing: the tokens are random ones."""

    rows = tokens(512, 36)
    pairs = torch.utils.data.TensorDataset(rows[:, :-1], rows[:, 1:])
    return Offline(vocab_size=200), DataLoader(pairs, batch_size=20, shuffle=True)


@training("lightning BoringModel")
def boring() -> Built:
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

    return BoringModel(), DataLoader(RandomDataset(32, 64), batch_size=8)


@training("torch LSTM tagger")
def tagger() -> Built:
    class Tagger(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(200, 64), nn.Linear(128, 12)
            self.rnn = nn.LSTM(64, 64, 2, batch_first=True, bidirectional=True, dropout=0.2)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            logits = self.head(self.rnn(self.embed(batch["ids"]))[0])
            return F.cross_entropy(logits.flatten(0, 1), batch["tags"].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Tagger(), loader(16, ids=tokens(256, 32), tags=torch.randint(12, (256, 32)))


@training("GAN, two optimizers by hand")
def adversarial() -> Built:
    """As in Lightning's examples of manual optimization, convolutional."""

    class Adversarial(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(
                nn.ConvTranspose2d(32, 64, 4), nn.BatchNorm2d(64), nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
            )  # fmt: skip
            self.critic = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
                nn.Flatten(), nn.Linear(64 * 16, 1),
            )  # fmt: skip

        def training_step(self, batch: dict[str, Tensor], index: int) -> None:
            real = batch["images"]
            first, second = self.optimizers()
            fake = self.generator(torch.randn(len(real), 32, 1, 1))
            judged = self.critic(torch.cat([real, fake.detach()])).squeeze(1)
            truth = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
            self._step(second, F.binary_cross_entropy_with_logits(judged, truth))
            self._step(first, F.softplus(-self.critic(fake)).mean())

        def _step(self, optimizer: Any, loss: Tensor) -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(part.parameters(), 2e-4, (0.5, 0.999)) for part in (self.generator, self.critic)
            ], []

    return Adversarial(), loader(16, images=torch.randn(256, 1, 16, 16))


@training("BYOL, a teacher by moving average")
def self_distilled() -> Built:
    """The teacher follows within the step."""
    import copy

    class Distilled(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            convolutions = [nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
            self.student = nn.Sequential(
                *convolutions, nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 64)
            )
            self.predict = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            with torch.no_grad():
                for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            one, two = (batch["images"] + 0.1 * torch.randn_like(batch["images"]) for _ in range(2))
            with torch.no_grad():
                target = self.teacher(two)
            return -F.cosine_similarity(self.predict(self.student(one)), target).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05, 0.9, weight_decay=1e-4)

    return Distilled(), loader(16, images=torch.randn(256, 3, 32, 32))


@training("DQN, a target copied by hand")
def q_learning() -> Built:
    import copy

    class Learner(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.online = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
            self.target = copy.deepcopy(self.online)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            if self.global_step % 25 == 0:
                self.target.load_state_dict(self.online.state_dict())
            value = self.online(batch["state"]).gather(1, batch["action"]).squeeze(1)
            with torch.no_grad():
                best = batch["reward"] + 0.99 * self.target(batch["next"]).amax(1)
            return F.smooth_l1_loss(value, best)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.online.parameters(), lr=1e-3)

    data = {"state": torch.randn(1024, 8), "action": torch.randint(4, (1024, 1))}
    return Learner(), loader(64, **data, reward=torch.randn(1024), next=torch.randn(1024, 8))
