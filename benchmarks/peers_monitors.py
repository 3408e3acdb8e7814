"""What watching a training costs: lightning-topo and others on the same network.

The others are a log of gradient norms, `wandb.watch`, torch-module-monitor, WeightWatcher and Cockpit.

Each is held against the same training without it, in turns, in one run. Cockpit needs a loop of its own (its losses
are extended by BackPACK), and so has its own bare loop beside it.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import grad_norm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers_homology import table
from benchmarks.stopwatch import Stopwatch, clock, train
from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor

BATCH, PERIOD = 128, 25


class Classifier(L.LightningModule):
    """A tanh network with `layers` hidden layers of `width` units, for 64 inputs and 10 classes."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.net = network(width, layers)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def network(width: int, layers: int) -> nn.Sequential:
    """The network alone; the same weights at every call."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(64, width), nn.Tanh()]
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def data() -> TensorDataset:
    """Ten batches."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(10 * BATCH, 64, generator=generator), torch.randint(0, 10, (10 * BATCH,), generator=generator)
    )


class WandbWatch(L.Callback):
    """`wandb.watch(log="all")`: histograms of parameters and gradients every `PERIOD` steps, offline."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        import wandb

        self.folder = tempfile.TemporaryDirectory()
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self.run = wandb.init(mode="offline", dir=self.folder.name, settings=settings)
        self.run.watch(pl_module, log="all", log_freq=PERIOD)

    def on_train_batch_end(self, *_: object) -> None:
        self.run.log({})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.run.unwatch(pl_module)
        self.run.finish()
        self.folder.cleanup()


class WeightWatcherAnalysis(L.Callback):
    """`WeightWatcher.analyze()` every `PERIOD` steps."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Classifier, *_: object) -> None:
        if (trainer.global_step + 1) % PERIOD == 0:
            import weightwatcher

            logging.getLogger("weightwatcher").setLevel(logging.ERROR)
            weightwatcher.WeightWatcher(model=pl_module.net).analyze()


class GradientNorms(L.Callback):
    """Lightning's `grad_norm` of every parameter, every `PERIOD` steps."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        if (trainer.global_step + 1) % PERIOD == 0:
            {name: float(value) for name, value in grad_norm(pl_module, norm_type=2).items()}


class ModuleMonitorMetrics(L.Callback):
    """torch-module-monitor: norms of activations, gradients and parameters, every `PERIOD` steps."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Classifier) -> None:
        from torch_module_monitor import ModuleMonitor

        self.monitor = ModuleMonitor(monitor_step_fn=lambda step: (step + 1) % PERIOD == 0)
        self.monitor.set_module(pl_module.net)
        for add in ("add_activation_metric", "add_gradient_metric", "add_parameter_metric"):
            getattr(self.monitor, add)("norm", lambda x: x.norm())

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.monitor.begin_step(trainer.global_step)

    def on_before_optimizer_step(self, *_: object) -> None:
        self.monitor.monitor_parameters()
        self.monitor.monitor_gradients()

    def on_train_batch_end(self, *_: object) -> None:
        self.monitor.end_step()


def in_lightning(width: int, layers: int, steps: int, device: torch.device, watch: L.Callback | None) -> float:
    """Seconds that the training takes."""
    stopwatch = Stopwatch(lambda: clock(device))
    callbacks = [stopwatch] if watch is None else [stopwatch, watch]
    train(Classifier(width, layers), DataLoader(data(), batch_size=BATCH), steps, device, callbacks)
    return stopwatch.seconds


def in_a_loop(width: int, layers: int, steps: int, device: torch.device, *, with_cockpit: bool) -> float:
    """Seconds of a bare loop over the same batches, with or without Cockpit in its smallest configuration."""
    net, loss_fn = network(width, layers).to(device), nn.CrossEntropyLoss()
    cockpit = None
    if with_cockpit:
        from backpack import extend
        from cockpit import Cockpit
        from cockpit.utils import schedules
        from cockpit.utils.configuration import configuration

        net, loss_fn = extend(net), extend(loss_fn)
        quantities = configuration("economy", track_schedule=schedules.linear(PERIOD, offset=PERIOD - 1))
        cockpit = Cockpit(net.parameters(), quantities=quantities)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = [(x.to(device), y.to(device)) for x, y in DataLoader(data(), batch_size=BATCH)]
    began = clock(device)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        out = net(x)
        loss = loss_fn(out, y)
        if cockpit is None:
            loss.backward()
        else:
            info = {
                "batch_size": BATCH,
                "individual_losses": nn.functional.cross_entropy(out, y, reduction="none"),
                "loss": loss,
                "optimizer": optimizer,
            }
            with cockpit(step, info=info):
                loss.backward(create_graph=cockpit.create_graph(step))
        optimizer.step()
    return clock(device) - began


def watched() -> dict[str, Callable[[], L.Callback]]:
    """What is compared. The monitor's probes and the peers all look every `PERIOD` steps."""

    def monitor(probes: Sequence[object] | None, max_overhead: float | None) -> TopologyMonitor:
        folder = Path(tempfile.mkdtemp(prefix="peers-"))
        return TopologyMonitor(probes, dirpath=folder, max_overhead=max_overhead, report=False, verbose=False)  # pyright: ignore[reportArgumentType]

    return {
        "lightning-topo, r": lambda: monitor([Distortion(PERIOD)], None),
        "lightning-topo, r and diagrams": lambda: monitor(
            [Distortion(PERIOD), Persistence(every_n_steps=PERIOD)], None
        ),
        "lightning-topo, all probes": lambda: monitor(
            [Distortion(PERIOD), Persistence(every_n_steps=PERIOD), Sharpness(PERIOD)], None
        ),
        "lightning-topo, r at every step": lambda: monitor([Distortion(1)], None),
        "gradient norms": GradientNorms,
        'wandb.watch(log="all")': WandbWatch,
        "torch-module-monitor": ModuleMonitorMetrics,
        "WeightWatcher.analyze()": WeightWatcherAnalysis,
    }


@contextmanager
def noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """Passes over a library that does not run here, and keeps why."""
    try:
        yield
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]


def overhead(sizes: Sequence[tuple[int, int]], steps: int, device: torch.device, repeats: int) -> tuple[str, list[str]]:
    """The table (best time with over best time without), and what did not run, with the reason."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    failed: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for width, layers in sizes:
        bare = ("Lightning", "a bare loop")
        runs: dict[str, Callable[[], float]] = {
            bare[0]: lambda w=width, n=layers: in_lightning(w, n, steps, device, None),
            bare[1]: lambda w=width, n=layers: in_a_loop(w, n, steps, device, with_cockpit=False),
            'Cockpit "economy"': lambda w=width, n=layers: in_a_loop(w, n, steps, device, with_cockpit=True),
        }
        for name, make in watched().items():
            runs[name] = lambda w=width, n=layers, m=make: in_lightning(w, n, steps, device, m())
        best: dict[str, float] = {}
        for _ in range(repeats):  # all take turns, so that a busy moment hits all
            for name, run in runs.items():
                with noting(failed, name):
                    best[name] = min(best.get(name, float("inf")), run())
        for name in runs:
            if name not in bare and name not in failed:
                unit = best[bare[1]] if name.startswith("Cockpit") else best[bare[0]]
                rows.setdefault(name, []).append(f"{best[name] / unit:.2f}")
    head = ["watched by", *(f"{layers} x {width}" for width, layers in sizes)]
    return table(head, [[name, *cells] for name, cells in rows.items()]), [f"{k}: {v}" for k, v in failed.items()]
