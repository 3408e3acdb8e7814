"""One small network, and the same training of it through every door."""

import warnings
from pathlib import Path

import lightning as L
import torch
import transformers
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_topo import Distortion, Persistence, TopologyMonitor, TopologyTrainerCallback, TopologyWatch
from lightning_topo.neurons import NeuronGroup, ParamSlice

N, BATCH = 64, 8


def _group(name, n, outgoing):
    pieces = (ParamSlice(f"{name}.weight"), ParamSlice(f"{name}.bias"), ParamSlice(f"{outgoing}.weight", dims=(1,)))
    return NeuronGroup(name, "unit", n, (), pieces)


GROUPS = (_group("net.0", 8, "net.2"), _group("net.2", 6, "net.4"))


def layers():
    """The same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Net(nn.Module):
    """Returns the loss, as transformers has it."""

    def __init__(self):
        super().__init__()
        self.net = layers()

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}


class LitNet(L.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.net, self.lr = layers(), lr

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Data(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(N, 4, generator=generator), torch.randint(0, 3, (N,), generator=generator)

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.y[index]}


def batches():
    return DataLoader(Data(), batch_size=BATCH)


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def options(**others):
    """Everything measured at fixed steps: no time of the machine's in the record."""
    probes = [Distortion(every_n_steps=3), Persistence(every_n_epochs=1, max_dim=0)]
    return {"probes": probes, "groups": GROUPS, "max_overhead": None, "on_error": "raise", "report": False} | others


class InOrder(transformers.Trainer):
    def get_train_dataloader(self):
        return self.accelerator.prepare(batches())


def trainer_of(folder, *, lr=0.1, epochs=2, **arguments):
    model = Net()
    optimizer = sgd(model, lr)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    made = transformers.TrainingArguments(**(defaults | arguments))
    return InOrder(model, made, train_dataset=Data(), eval_dataset=Data(), optimizers=(optimizer, constant))


def by_lightning(folder, lr=0.1, epochs=2, **others):
    module, monitor = LitNet(lr), TopologyMonitor(dirpath=Path(folder) / "topology", **options(**others))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[monitor],
            enable_model_summary=False,
            default_root_dir=folder,
            **quiet,
        ).fit(module, batches())
    return module, monitor


def by_hand(folder, lr=0.1, epochs=2, **others):
    model = Net()
    optimizer = sgd(model, lr)
    with TopologyWatch(model, optimizer, dirpath=Path(folder) / "topology", **options(**others)) as watch:
        for _ in range(epochs):
            for batch in batches():
                with watch.step():
                    optimizer.zero_grad()
                    watch.loss(model(**batch)["loss"]).backward()
                    optimizer.step()
            watch.end_epoch()
    return model, watch


def by_fabric(folder, lr=0.1, epochs=2, **others):
    fabric = Fabric(accelerator="cpu", devices=1)
    bare = Net()
    model, optimizer = fabric.setup(bare, sgd(bare, lr))
    data = fabric.setup_dataloaders(batches())
    with TopologyWatch(model, optimizer, dirpath=Path(folder) / "topology", **options(**others)) as watch:
        for _ in range(epochs):
            for batch in data:
                with watch.step():
                    optimizer.zero_grad()
                    fabric.backward(watch.loss(model(**batch)["loss"]))
                    optimizer.step()
            watch.end_epoch()
    return bare, watch


def by_transformers(folder, lr=0.1, epochs=2, **others):
    trainer = trainer_of(folder, lr=lr, epochs=epochs)
    callback = TopologyTrainerCallback(trainer, **options(**others))
    trainer.add_callback(callback)
    trainer.train()
    return trainer.model, callback


def weights(model):
    """By name, without what is no layer's."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def watched(trainer, **others):
    callback = TopologyTrainerCallback(trainer, **options(**others))
    trainer.add_callback(callback)
    return callback


def losses(callback):
    return [m.values["loss"] for m in callback.record.measurements if m.probe == "training"]
