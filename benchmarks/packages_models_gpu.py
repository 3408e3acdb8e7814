"""Trainings of their usual sizes, for a GPU: what people train, on random tensors."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.packages_models import Built, Supervised, Training, loader

LARGE_TRAININGS: dict[str, Training] = {}


class Classifier(L.LightningModule):
    """A network over pictures, with SGD and momentum or AdamW."""

    def __init__(self, network: nn.Module, lr: float, adam: bool) -> None:
        super().__init__()
        self.network, self.lr, self.adam = network, lr, adam

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch["x"]), batch["y"], label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


def _pictures(name: str, package: str, batch: int, lr: float, *, adam: bool = True, **trainer: Any) -> None:
    def build() -> Built:
        if package == "timm":
            import timm

            network = timm.create_model(name)
        else:
            import torchvision

            network = torchvision.models.get_model(name)
        data = {"x": torch.randn(4 * batch, 3, 224, 224), "y": torch.randint(1000, (4 * batch,))}
        return Classifier(network, lr, adam), loader(batch, **data)

    LARGE_TRAININGS[f"{package} {name}"] = Training(build, (package,), trainer)


def _text(name: str, make: Callable[[], nn.Module], batch: int, time: int, vocabulary: int, **trainer: Any) -> None:
    def build() -> Built:
        rows = torch.randint(3, vocabulary, (8 * batch, time))
        return Supervised(make()), loader(batch, input_ids=rows, labels=rows)

    LARGE_TRAININGS[f"transformers {name}"] = Training(build, ("transformers",), trainer)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig())


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
        )
    )


_text("GPT-2, 124M", gpt2, 8, 512, 50_000, precision="bf16-mixed", gradient_clip_val=1.0)
_text("BERT-base, 110M", bert, 16, 256, 30_000, precision="16-mixed")
_text("Llama, 290M", llama, 4, 512, 32_000, precision="bf16-mixed")
_pictures("resnet50", "torchvision", 64, 0.05, adam=False, precision="bf16-mixed")
_pictures("mobilenet_v3_small", "torchvision", 64, 0.05, adam=False)
_pictures("vit_base_patch16_224", "timm", 64, 3e-4, precision="bf16-mixed")
_pictures("convnext_tiny", "timm", 64, 3e-4, precision="bf16-mixed")
_pictures("resnet18", "timm", 64, 0.05, adam=False)
