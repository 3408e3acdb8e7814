"""One small network, built whole or sharded in every way, and the same data for one process or for several."""

from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

MODES = ("ddp", "fsdp1", "fsdp2", "tp", "2d")
"""Of two processes; "2d" is FSDP2 over 2 with tensor parallel over 1, or, of four, 2 by 2."""

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class Net(L.LightningModule):
    """4 groups: two of them in pairs of layers that share a parameter."""

    def __init__(self, mode="single", lr=0.3):
        super().__init__()
        self.mode, self.lr = mode, lr
        torch.manual_seed(3)
        sizes = (4, 8, 6, 10, 8, 3)
        layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
        self.net = nn.Sequential(*layers[:-1])
        self.is_sharded = False

    def configure_model(self):
        if self.is_sharded or self.mode not in ("fsdp2", "tp", "2d"):
            return
        self.is_sharded = True
        if self.mode in ("tp", "2d"):
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": ColwiseParallel(), "6": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)
        if self.mode in ("fsdp2", "2d"):
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        parameters = self.trainer.model.parameters() if self.mode == "fsdp1" else self.parameters()
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.5)


class CPUFSDP(FSDPStrategy):
    """Lightning refuses FSDP1 on CPUs; torch does not. For tests only."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )


def strategy(mode, size):
    if mode == "single":
        return "auto"
    if mode == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if mode == "unused":  # DDP whose steps may leave parameters out
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    if mode == "fsdp1":
        return CPUFSDP(auto_wrap_policy={nn.Linear}, process_group_backend="gloo")
    if mode == "zero3":
        from tests.distributed.zero import CPUZero

        return CPUZero()
    parallel = {"fsdp2": 1, "tp": size, "2d": max(size // 2, 1)}[mode]
    return ModelParallelStrategy(
        data_parallel_size=size // parallel, tensor_parallel_size=parallel, process_group_backend="gloo"
    )


def dataset(n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (n,), generator=generator))


def loader(batch_size=16, parts=1, part=0, n=64):
    """Batches of the whole data, or of every `parts`-th sample: together the same batches."""
    data = dataset(n)
    return DataLoader(data, batch_size // parts, sampler=DistributedSampler(data, parts, part, shuffle=False))


def trainer(mode, folder, callbacks, size=2, **options):
    devices = 1 if mode == "single" else size
    return L.Trainer(
        **(QUIET | {"max_epochs": 2} | options),
        strategy=strategy(mode, size),
        devices=devices,
        callbacks=callbacks,
        default_root_dir=str(folder),
    )


def parts(mode, rank, size=2):
    """Over how many processes the data are divided, and which part is this one's."""
    if mode in ("single", "tp"):
        return 1, 0
    return (2, rank // 2) if (mode, size) == ("2d", 4) else (size, rank)
