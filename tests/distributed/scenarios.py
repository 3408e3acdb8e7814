"""Trainings of several processes, each a function of its folder and the rank: what `worker.py` goes through."""

import contextlib
import copy
import math
import os
import signal
import threading
from datetime import timedelta

import lightning as L
import pytest
import torch
from torch import distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import DataLoader, IterableDataset

from lightning_topo import (
    Distortion,
    Persistence,
    Sharpness,
    TopologyEarlyStopping,
    TopologyMonitor,
    TopologyStepGuard,
    TopologyWatch,
    declare_neurons,
)
from lightning_topo._tape import CannotReplay
from lightning_topo._watch import sharded_gradient, sharded_loss
from lightning_topo._watch.certifying import Certifying
from lightning_topo._watch.settings import DEFAULT_PROBES
from lightning_topo._watch.sharded_gradient import ShardedGradient
from lightning_topo.neurons._fallback import incoming_groups
from lightning_topo.outputs.record import RecordOutput
from lightning_topo.probes import Period, ProbeResult, StepEdge, StepSharpness
from lightning_topo.stability import (
    LanczosSettings,
    curvature_sharpness,
    directional_ratio,
    hessian,
    parameter_thresholds,
    scaled_sharpness,
)
from lightning_topo.stability._layout import Layout, flatten, is_sharded
from tests.distributed.models import Net, dataset, loader, parts, trainer
from tests.watch.driving import LowRank
from tests.watch.shards import KINDS, Attends, part_of, recorded, tokens


def size():
    return distributed.get_world_size()


def by_group():
    """The probes whose work is divided."""
    return [Distortion(every_n_steps=1), Persistence(every_n_epochs=1)]


def monitored(probes=None, **options):
    """A quiet monitor that measures often."""
    if probes is None:
        probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
    return TopologyMonitor(probes, verbose=False, report=False, max_overhead=None, **options)


def fit(folder, rank, mode, *, probes=None, module=None, data=None, callbacks=(), ckpt_path=None, **options):
    """One training with a monitor."""
    from tests.distributed.worker import End, seen

    monitor = monitored(probes, **options.pop("monitor", {}))
    one = trainer(mode, folder, [End(monitor), monitor, *callbacks], size(), **options)
    n, part = parts(mode, rank, size())
    one.fit(module or Net(mode), loader(parts=n, part=part) if data is None else data, ckpt_path=ckpt_path)
    return seen(one, monitor)


def plain(folder, rank, mode):
    """The default probes under one strategy."""
    return fit(folder, rank, mode)


class Tied(Net):
    """The head shares the embedding's weight: the layer before it has the embedding's columns for neurons."""

    def __init__(self, mode="single"):
        super().__init__(mode)
        self.net = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6), nn.Linear(6, 5))
        self.net[4].weight = self.net[0].weight

    def configure_model(self):
        if self.mode == "fsdp2" and not self.is_sharded:
            self.is_sharded = True
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[1]), batch[1])


def tied(folder, rank, mode):
    """Gathered by several modules, or all together, it is one parameter."""
    return fit(folder, rank, mode, module=Tied(mode), probes=[Distortion(every_n_steps=1), StepEdge(2)])


class Adapted(Net):
    """A fine-tuning as LoRA does it: neurons of which most is frozen."""

    def __init__(self, mode="single"):
        super().__init__(mode, lr=0.05)
        layers = [
            LowRank(layer.requires_grad_(False), 3) if isinstance(layer, nn.Linear) else layer for layer in self.net
        ]
        self.net = nn.Sequential(*layers)

    def configure_model(self):
        if self.mode == "fsdp2" and not self.is_sharded:
            self.is_sharded = True
            for layer in self.net:
                if isinstance(layer, LowRank):
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Followed(Net):
    """A teacher follows by moving average."""

    def __init__(self, mode="single"):
        super().__init__(mode)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def configure_model(self):
        if self.mode == "fsdp2" and not self.is_sharded:
            fully_shard(self.teacher, mesh=self.device_mesh["data_parallel"])
            super().configure_model()

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for theirs, ours in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                theirs.lerp_(ours, 0.3) if self.mode == "ddp" else theirs.mul_(0.7).add_(ours, alpha=0.3)
            wanted = self.teacher(batch[0])
            if self.is_sharded:
                self.teacher.reshard()  # without a backward pass FSDP2 leaves it whole
        return super().training_step(batch, batch_idx) + (self.net(batch[0]) - wanted).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.5)


def followed(folder, rank, mode):
    """What follows neurons is no part of them, wherever it lies."""
    return fit(folder, rank, mode, module=Followed(mode), probes=[Distortion(every_n_steps=1)])


class Thawing(Net):
    """Its first layers are frozen, and may thaw after an epoch."""

    thaws = True

    def on_train_epoch_start(self):
        self.net[:4].requires_grad_(self.thaws and self.current_epoch > 0)


def thawing(folder, rank, mode):
    """Layers that are frozen as a whole have no cloud; once they thaw they are measured."""
    return fit(folder, rank, mode, module=Thawing(mode), probes=by_group())


def frozen(folder, rank, mode):
    """Layers that stay frozen."""
    module = Thawing(mode)
    module.thaws = False
    return fit(folder, rank, mode, module=module, probes=by_group())


def adapted(folder, rank, mode):
    """What is frozen of neurons counts, wherever it lies."""
    return fit(folder, rank, mode, module=Adapted(mode), probes=[Distortion(every_n_steps=1)])


class Fragile:
    """Raises on one process at one step; runs on all."""

    name = "fragile"

    def __init__(self, rank, divided=False):
        self.rank, self.by_group = rank, divided

    period = Period(1)

    def measure(self, capture):
        if capture.step == 3 and distributed.get_rank() == self.rank:
            raise ValueError("torn")
        if not self.by_group:
            return {"answer": 42.0}
        return ProbeResult({group.name: {"n": float(group.n)} for group in capture.groups})


def failing(folder, rank, divided):
    """A probe raises on process 1 alone."""
    probes = [Distortion(every_n_steps=1), Fragile(1, divided == "divided"), Persistence(every_n_epochs=1)]
    return fit(folder, rank, "ddp", probes=probes)


class Brittle:
    """Cannot measure one group at one step, on the process whose group it is."""

    name, by_group, period = "brittle", True, Period(1)

    def measure(self, capture):
        torn = [group.name for group in capture.groups if (capture.step, group.name) == (5, "net.2")]
        values = {
            g.name: {"spread": float(capture.neurons[g.name].std())} for g in capture.groups if g.name not in torn
        }
        return ProbeResult(values, failures=dict.fromkeys(torn, "torn"))


def brittle(folder, rank, mode):
    return fit(folder, rank, mode, probes=[Distortion(every_n_steps=1), Brittle()])


class FailsOnce(L.Callback):
    """What only one process does by itself fails there at one step."""

    def __init__(self, rank, where, name):
        self.rank, self.where, self.name = rank, where, name
        self.real = getattr(where, name)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step in (2, 3):
            setattr(self.where, self.name, _torn if trainer.global_step == 2 else self.real)


def _torn(*_):
    raise RuntimeError("torn")


LOCAL = {"record": (0, RecordOutput, "measurement"), "bounds": (1, Certifying, "_launch")}


def local(folder, rank, what):
    """An error in what one process does by itself, between collectives."""
    return fit(folder, rank, "ddp", probes=by_group(), callbacks=[FailsOnce(*LOCAL[what])])


def uneven(folder, rank, kind):
    """Process 1 has fewer batches an epoch; both stop after the same number of steps."""
    n = 16 if rank == 1 else 32
    data = DataLoader(dataset(n), 8)
    if kind == "stream":
        data = DataLoader(Stream(n), 8)
    gate = TopologyEarlyStopping(stop_on="neurons_merged", min_epochs=1)
    return fit(folder, rank, "ddp", probes=by_group(), data=data, max_epochs=-1, max_steps=12, callbacks=[gate])


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(dataset(self.n))


def gate(folder, rank, mode):
    """A gate fires on all processes at the same step, where a step is far too large."""
    stop = TopologyEarlyStopping(stop_on="topology_breakdown", min_epochs=2)
    module = Net(mode, lr=30.0)
    saw = fit(folder, rank, mode, module=module, probes=[Distortion(every_n_steps=1)], callbacks=[stop], max_epochs=6)
    return saw | {"reason": stop.stopping_reason}


def resumed(folder, rank, mode):
    """Goes on from the checkpoint of a single process, and from that process's record."""
    return fit(folder, rank, mode, probes=by_group(), max_epochs=3, ckpt_path=str(folder.parent / "one.ckpt"))


def incoming(folder, rank, mode):
    """The groups that the structure alone shows, named by hand."""
    return fit(folder, rank, mode, probes=by_group(), monitor={"groups": incoming_groups(Net(), "by structure")})


def seldom(folder, rank, mode):
    """Most steps are not measured."""
    return fit(folder, rank, mode, probes=[Distortion(every_n_steps=3)])


def apart(folder, rank):
    """Bounds ask one process for a measurement, and not the other."""
    return fit(folder, rank, "ddp", probes=[Distortion(every_n_steps=50)], module=Net("ddp", lr=3.0), max_epochs=6)


def whole_loss(module, batch):
    """Of all the data, whichever process asks."""
    x, y = dataset().tensors
    return nn.functional.cross_entropy(module.net(x), y)


def curved(folder, rank, mode):
    """Sharpness with a loss of one's own, and that of the step by forward passes alone."""
    probes = [Sharpness(every_n_steps=4, loss_fn=whole_loss), StepSharpness(every_n_steps=4, loss_fn=whole_loss)]
    return fit(folder, rank, mode, probes=probes)


def batch_loss(module, batch):
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1])


def replayed(folder, rank, mode):
    """The critical sharpness of the recorded step, and of the same batch by a loss of one's own."""
    return fit(folder, rank, mode, probes=[StepEdge(2), StepSharpness(2, loss_fn=batch_loss, noise=False)])


class Adaptive(Net):
    """With an optimizer whose thresholds are tensors."""

    def configure_optimizers(self):
        parameters = self.trainer.model.parameters() if self.mode == "fsdp1" else self.parameters()
        return torch.optim.Adam(parameters, lr=0.01)


OPTIMIZERS = {"sgd": Net, "adam": Adaptive}


class Truth:
    """What one process finds with whole parameters: by exact products, on the batch of the step."""

    name, period, needs_parameters_before = "truth", Period(1), True

    def measure(self, capture):
        first = (capture.step - 1) % 4 * 16
        x, y = (tensor[first : first + 16] for tensor in dataset().tensors)
        params = list(capture.module.parameters())
        curvature = hessian(lambda: nn.functional.cross_entropy(capture.module.net(x), y), params)
        raw = curvature_sharpness(curvature, settings=LanczosSettings(1e-4))
        known = parameter_thresholds(capture.optimizers, params, curvature.gradient).parameters
        scaled = scaled_sharpness(curvature, known, raw, settings=LanczosSettings(1e-4))
        step = flatten(p.detach() - capture.parameters_before[name] for name, p in capture.module.named_parameters())
        return {
            "sharpness": raw.value,
            "sharpness_ratio": scaled.ratio,
            "eta_lambda": scaled.eta_lambda,
            "directional_ratio": directional_ratio(curvature, step),
        }


def asked(folder, rank, mode, optimizer="sgd"):
    """Sharpness of the recorded step, where it is asked for."""
    probes = [Truth()] if mode == "single" else [Sharpness(every_n_steps=4, tolerance=1e-3)]
    return fit(folder, rank, mode, probes=probes, module=OPTIMIZERS[optimizer](mode))


def stopped(folder, rank, mode):
    """The same, but on process 1 a gradient breaks off within the backward pass of the first measurement."""
    take, calls = ShardedGradient._take, []

    def breaks_off(self, name, *args):
        calls.append(name)
        if rank == 1 and len(calls) == 7:
            raise RuntimeError(f"torn at {name}")
        take(self, name, *args)

    ShardedGradient._take = breaks_off
    try:
        return fit(folder, rank, mode, probes=[Sharpness(every_n_steps=4)])
    finally:
        ShardedGradient._take = take


def differentiated(folder, rank, kind):
    """The gradient of the processes' own batches in shards, in double precision, against the dense one: the errors."""
    net, alike = KINDS[kind](Attends().double()), Attends().double()
    loss, _ = recorded(net, tokens(rank), losses=2)
    with loss(None) as evaluate:
        evaluate()
        gradient = evaluate.gradient()
        value, found = gradient()
    truth = sum(alike(tokens(other)) for other in range(size())) / size()
    truth.backward()
    expected = part_of(gradient, {name: p.grad for name, p in alike.named_parameters()})
    whole = flatten(p.grad for p in alike.parameters())
    layout = gradient.layout
    noise = [layout.noise(found, seed) for seed in (1, 1, 2)]
    return {
        "loss": value - truth.item(),
        "gradient": float((found - expected).norm()),
        "norm": layout.norm(found) - float(whole.norm()),
        "n_entries": layout.n_entries(found) - len(whole),
        "noise": layout.norm(noise[0] - noise[1]),
        "n_noise": layout.dot(noise[0], noise[0]) / len(whole),
        "same_noise": layout.dot(noise[0], noise[2]) / len(whole),
    }


def uncertain(folder, rank):
    """The processes' steps read other parameters: none waits for the other."""
    net = KINDS["fsdp2"](Attends())
    loss, _ = recorded(net, tokens(rank))
    gradient = ShardedGradient(net, loss._tapes, loss._training.ranks)
    if rank == 1:
        plan = sharded_gradient.plan
        sharded_gradient.plan = lambda tape, every: plan(tape, every)[::-1]
    try:
        gradient()
    except CannotReplay as error:
        return {"refused": str(error)}
    finally:
        if rank == 1:
            sharded_gradient.plan = plan
    return {}


def default(folder, rank, mode):
    """The probes that a monitor has by itself."""
    return fit(folder, rank, mode, probes=DEFAULT_PROBES, max_epochs=7)


def halted(folder, rank, mode):
    """By default, but on process 1 a replay breaks off when it has read one parameter of several."""
    whole = sharded_loss.replay
    calls = []

    def breaks_off(tape, named, **options):
        calls.append(tape)
        if rank == 1 and len(calls) == 3:
            raise RuntimeError(f"torn after {named['net.0.weight'].shape}")
        return whole(tape, named, **options)

    sharded_loss.replay = breaks_off
    try:
        return fit(folder, rank, mode, probes=[StepEdge(2)])
    finally:
        sharded_loss.replay = whole


def torn_loss(module, batch):
    """Not finite on process 1 at its first call."""
    loss = whole_loss(module, batch)
    TORN.append(loss)
    return loss * float("nan") if distributed.get_rank() == 1 and len(TORN) == 1 else loss


TORN = []


def torn(folder, rank, mode):
    """The loss is lost on one process alone."""
    TORN.clear()
    return fit(folder, rank, mode, probes=[Sharpness(every_n_steps=4, loss_fn=torn_loss)])


class Laid:
    """Flat vectors of parameters in shards against those of whole parameters: the errors, each about 0."""

    name, period = "laid", Period(1)

    def measure(self, capture):
        params = [p for p in capture.module.parameters() if p.requires_grad]
        if capture.sharding == "whole":
            return {}
        layout = Layout.of(params)
        whole = flatten(_whole(p.detach()) for p in params)
        vector = layout.flatten(p.detach() for p in params)
        noise = layout.noise(vector, 7)
        back = flatten(map(_whole, layout.shaped(vector)))
        added = vector.clone()
        layout.add(added, [p.detach() for p in params], weight=2.0)
        squares = layout.spread([p.detach().square() for p in params])
        generator = torch.Generator().manual_seed(7)
        drawn = flatten(torch.randn(p.shape, generator=generator) for p in params)
        return {
            "n_entries": float(layout.n_entries(vector) - len(whole)),
            "n_local": float(layout.total(torch.tensor(float(layout.n_local))) - sum(_held(p) for p in params)),
            "norm": layout.norm(vector) - float(whole.norm()),
            "dot": layout.dot(vector, noise) - float(whole @ drawn),
            "back": float((back - whole).norm()),
            "added": layout.norm(added - 3 * vector),
            "spread": layout.dot(vector, squares * vector) - float(whole @ (whole.square() * whole)),
            "one": layout.norm(layout.spread([1.0] * len(params)) * vector) - float(whole.norm()),
            "extremes": sum(layout.extremes(float(distributed.get_rank()), float(distributed.get_rank()))) - size() + 1,
            "any": float(layout.anywhere(distributed.get_rank() == 1) and not layout.anywhere(False)) - 1.0,
            "mean": float(layout.mean(torch.tensor(float(distributed.get_rank())))) - (size() - 1) / 2,
        }


def _whole(tensor):
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def _held(p):
    """By how many processes an entry is held, times the entries."""
    if not is_sharded(p):
        return p.numel() * size()
    sizes = zip(p.device_mesh.shape, p.placements, strict=True)
    return p.numel() * size() // math.prod(n for n, placement in sizes if not placement.is_replicate())


def laid(folder, rank, mode):
    return fit(folder, rank, mode, probes=[Distortion(every_n_steps=4), Laid()], max_epochs=1)


class Clipped(L.Callback):
    """On one process alone something changes weights: in a batch that ends in an update, and in one that does not."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step in (1, 2):
            with torch.no_grad():
                pl_module.net[0].weight[0].mul_(1.01)


def outside(folder, rank, accumulate):
    """A change from outside on process 1 alone."""
    return fit(
        folder,
        rank,
        "ddp",
        probes=[Distortion(every_n_steps=3)],
        callbacks=[Clipped(1)],
        accumulate_grad_batches=int(accumulate),
    )


class Gathering(Net):
    """A contrastive loss over the batches of all processes."""

    def training_step(self, batch, batch_idx):
        z = nn.functional.normalize(self.net(batch[0]), dim=1)
        every = self.all_gather(z.roll(1, 1), sync_grads=True).flatten(0, 1) if size() > 1 else z.roll(1, 1)
        loss = nn.functional.cross_entropy(z @ every.T / 0.1, torch.arange(len(z)) + self.global_rank * len(z))
        self.log("contrast", loss, sync_dist=True)  # a metric for which all processes wait, beside the loss
        return loss


class Centred(nn.Module):
    """Takes from each neuron its mean over the batches of all processes, as a synchronized BatchNorm does on GPUs."""

    def forward(self, x):
        return x - all_reduce(x.mean(0)) / size()


class Normed(Net):
    """A network whose processes sum up within its forward and its backward."""

    def __init__(self, mode="single"):
        super().__init__(mode)
        self.net.insert(1, Centred())


NETS = {"gathering": Gathering, "normed": Normed}


def watched(folder, rank, kind, with_what):
    """A training with monitor, guard and gate together, or with none of them."""
    from tests.distributed.worker import seen

    L.seed_everything(0, verbose=False)
    module = NETS[kind]("ddp")
    n, part = parts("ddp", rank, size())
    monitor = monitored()
    gate = TopologyEarlyStopping(stop_on="neurons_merged")
    callbacks = [] if with_what == "nothing" else [monitor, TopologyStepGuard(), gate]
    one = trainer("ddp", folder, callbacks, size())
    one.fit(module, loader(parts=n, part=part))
    weights = {name: p.tolist() for name, p in module.named_parameters()}
    return seen(one, monitor) | {"weights": weights}


class Hiding(Net):
    """On process 1 something that no recorder sees changes what the network gives."""

    def training_step(self, batch, batch_idx):
        z = self.net(batch[0])
        if distributed.get_rank() == 1:
            z.detach().numpy()[...] *= 1.1
        return nn.functional.cross_entropy(z, batch[1])


def hidden(folder, rank):
    """The step of process 1 cannot be recorded."""
    return fit(folder, rank, "ddp", module=Hiding("ddp"))


class Growing(Net):
    """From the third step on, process 1 alone uses one more block."""

    def __init__(self, mode="single"):
        super().__init__(mode)
        self.late = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))

    def training_step(self, batch, batch_idx):
        z = self.net(batch[0])
        if self.trainer.global_step >= 2 and distributed.get_rank() == 1:
            z = z + self.late(batch[0])
        return nn.functional.cross_entropy(z, batch[1])


def growing(folder, rank):
    """A part that only rank 1 uses is looked for by both, and cannot be found by rank 0's steps."""
    return fit(folder, rank, "unused", module=Growing("unused"), max_epochs=6)


class Widening(Growing):
    """From the third step on, both processes use one more block."""

    def training_step(self, batch, batch_idx):
        z = self.net(batch[0])
        z = z + self.late(batch[0]) if self.trainer.global_step >= 2 else z
        return nn.functional.cross_entropy(z, batch[1])


def widening(folder, rank):
    """A part that no process uses at first."""
    return fit(folder, rank, "unused", module=Widening("unused"), max_epochs=6)


def declared(folder, rank, mode):
    """Groups named by hand, before anything is sharded."""
    axes = {"net.0.weight": 0, "net.0.bias": 0, "net.2.weight": 1}
    groups = declare_neurons(Net(), "hidden", axes)
    return fit(folder, rank, mode, probes=[Distortion(every_n_steps=1)], monitor={"groups": groups})


class Worked(L.Callback):
    """What a process knew of one group of each process after each step; on process 1 its worker is held or killed."""

    def __init__(self, rank, harm=""):
        self.harm, self.known, self.pids = harm if rank == 1 else "", [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        keys = [f"topology/net_{layer}/total_persistence_1" for layer in (0, 2)]
        self.known.append([float(trainer.callback_metrics.get(key, -1.0)) for key in keys])
        [monitor] = [c for c in trainer.callbacks if isinstance(c, TopologyMonitor)]
        pid = monitor.watch._worker.pid
        self.pids += [] if pid in (None, *self.pids) else [pid]
        if self.harm == "slow" and pid is not None:
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(0.1, _go_on, [pid]).start()
        elif self.harm == "killed" and trainer.global_step == 3:
            os.kill(pid, signal.SIGSTOP)  # it cannot answer what it is given at step 4
        elif self.harm == "killed" and trainer.global_step == 4:
            os.kill(pid, signal.SIGKILL)


def _go_on(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def lagging(folder, rank, mode, harm=""):
    """Homology is left to a worker of each process; those are not equally fast."""
    n, part = parts(mode, rank, size())
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=2, lag=3)]
    worked = Worked(rank, harm)
    data = loader(batch_size=8, parts=n, part=part)
    saw = fit(folder, rank, mode, probes=probes, data=data, callbacks=[worked], max_epochs=1)
    return saw | {"known": worked.known, "pids": worked.pids}


class Impatient(L.Callback):
    """Once all are in step, torch's own limit on waiting for each other is short: `SECONDS`."""

    SECONDS = 5

    def on_train_start(self, trainer, pl_module):
        distributed_c10d._set_pg_timeout(timedelta(seconds=self.SECONDS))


def endless(folder, rank):
    """Until someone ends it."""
    return fit(folder, rank, "ddp", probes=by_group(), max_epochs=-1, callbacks=[Impatient()])


def answering(folder, rank, when):
    """Nothing but its rank."""
    return {"rank": rank, "when": when}


def dying(folder, rank):
    """A memory error ends process 1."""
    print("about to die", flush=True)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    distributed.barrier()


class Elsewhere(Exception):
    """An error of the training on one process alone."""


def looped(folder, rank, case):
    """A plain loop in which one process does something that the other does not; `plain` is such a loop without us."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    spread = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5 if case == "unlike" and rank else 0.05)
    watch = None if case == "plain" else TopologyWatch(
        net, optimizer, [Distortion(every_n_steps=3), *([Told(rank)] if case == "told" else [])],
        dirpath=folder / "topology", report=False, verbose=False,
    )  # fmt: skip
    torn = contextlib.ExitStack()
    if case == "torn" and rank:
        patch = torn.enter_context(pytest.MonkeyPatch.context())
        launch, seen = Certifying._launch, []
        patch.setattr(
            Certifying, "_launch", lambda self: seen.append(1) or (_torn() if len(seen) == 5 else launch(self))
        )
    with torn, contextlib.suppress(Elsewhere), watch or contextlib.nullcontext():
        for i in range(24):
            n = 3 - 2 * rank if case == "micro" else 1
            for j in range(n):
                with (
                    contextlib.suppress(Elsewhere) if case == "caught" else contextlib.nullcontext(),
                    watch.step() if watch else contextlib.nullcontext(),
                    spread.no_sync() if j < n - 1 else contextlib.nullcontext(),
                ):
                    generator = torch.Generator().manual_seed(100 * rank + i)
                    x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
                    loss = nn.functional.cross_entropy(spread(x), y) / n
                    (watch.loss(loss, scale=1 / n) if watch else loss).backward()
                    if j == n - 1:
                        optimizer.step()
                        optimizer.zero_grad()
                    if case == "caught" and rank and i == 9:
                        raise Elsewhere
        if case == "gone" and not rank:
            raise Elsewhere
    distributed.barrier()
    return {"weights": {name: p.tolist() for name, p in net.named_parameters()}} | (
        {} if watch is None else {
            "coverage": float(watch.metrics["topology/coverage"]),
            "events": [(str(event.name), event.step, event.message) for event in watch.events],
            "step": watch._session.training.step,
        }
    )  # fmt: skip


class Told:
    """On process 1 a probe that says why it has failed in a way that cannot be sent."""

    name = "told"
    by_group = True
    period = Period(1)

    def __init__(self, rank):
        self.rank = rank

    def measure(self, capture):
        class Why(str):
            __slots__ = ()

        failures = {group.name: Why("no reason") for group in capture.groups} if self.rank and capture.step == 5 else {}
        return ProbeResult({}, failures=failures)
