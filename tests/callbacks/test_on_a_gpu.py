"""Trainings on a GPU: bitwise what they are without us, in every precision, and without waiting for the device."""

import os
import statistics
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor, TopologyStepGuard
from tests.callbacks.training import happened
from tests.callbacks.untouched import NEEDS_A_GPU, Noted, differences, left_behind

pytestmark = NEEDS_A_GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Attention(Noted):
    """A block of a transformer over tokens, by the fused kernel; with dropout, inside of the kernel too where asked."""

    def __init__(self, dropped=0.0, backend=None, **options):
        super().__init__()
        self.dropped, self.backend = dropped, backend
        self.options = {"lr": 1e-2} | options
        self.embedding, self.qkv, self.out = nn.Embedding(20, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm, self.drop = nn.LayerNorm(32), nn.Dropout(0.1)
        self.mlp, self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), nn.Linear(32, 20)

    def step(self, batch):
        x = self.embedding(batch[0])
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            out = F.scaled_dot_product_attention(q, k, v, None, self.dropped, is_causal=True)
        x = x + self.out(out.transpose(1, 2).flatten(2))
        x = x + self.drop(self.mlp(x))
        return F.cross_entropy(self.head(x).flatten(0, 1), batch[0].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), **self.options)


class Images(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
        )

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0].to(memory_format=torch.channels_last)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


class Sequences(Noted):
    """A recurrent network of some kind over sequences, by cuDNN's kernel or a cell's own."""

    def __init__(self, make):
        super().__init__()
        self.net = make()
        self.last = nn.LazyLinear(3)

    def step(self, batch):
        if isinstance(self.net, nn.RNNCellBase):
            state = None
            for x in batch[0].unbind(1):
                state = self.net(x, state)
            out = state[0] if isinstance(state, tuple) else state
        else:
            out = self.net(batch[0])[0][:, -1]
        return F.cross_entropy(self.last(out), batch[1])


class Plain(Noted):
    """Two hidden layers; at `leap` the learning rate is what breaks them."""

    def __init__(self, leap=-1):
        super().__init__()
        self.net, self.leap = (
            nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 3)),
            leap,
        )

    def step(self, batch):
        self.optimizers().param_groups[0]["lr"] = 30.0 if self.global_step == self.leap else 0.01
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Logging(Plain):
    """Lightning moves what it logs to the device in the first step."""

    def step(self, batch):
        loss = super().step(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


def tokens():
    return DataLoader(
        TensorDataset(torch.randint(20, (64, 16), generator=torch.Generator().manual_seed(3))), batch_size=8
    )


def pictures(*shape):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(256, *shape, generator=generator), torch.randint(3, (256,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8, pin_memory=True)


KINDS = {
    "plain": (Attention, tokens, {}),
    "bfloat16": (Attention, tokens, {"precision": "bf16-mixed"}),
    "float16, scaled": (Attention, tokens, {"precision": "16-mixed"}),
    "bfloat16 weights": (Attention, tokens, {"precision": "bf16-true"}),
    "fused": (lambda: Attention(fused=True), tokens, {}),
    "fused, scaled": (lambda: Attention(fused=True), tokens, {"precision": "16-mixed"}),
    "one by one": (lambda: Attention(foreach=False), tokens, {}),
    "capturable": (lambda: Attention(capturable=True), tokens, {}),
    "clipped": (Attention, tokens, {"gradient_clip_val": 0.1, "precision": "bf16-mixed"}),
    "accumulated": (Attention, tokens, {"accumulate_grad_batches": 2}),
    "attention dropout": (lambda: Attention(dropped=0.1), tokens, {}),
    "attention dropout, bfloat16": (
        lambda: Attention(0.1, SDPBackend.FLASH_ATTENTION),
        tokens,
        {"precision": "bf16-mixed"},
    ),
    "attention dropout, float16": (
        lambda: Attention(0.1, SDPBackend.FLASH_ATTENTION),
        tokens,
        {"precision": "16-mixed"},
    ),
    "convolutions": (Images, lambda: pictures(3, 16, 16), {}),
    "convolutions, float16": (Images, lambda: pictures(3, 16, 16), {"precision": "16-mixed"}),
    "GRU": (lambda: Sequences(lambda: nn.GRU(2, 16, 2, batch_first=True)), lambda: pictures(12, 2), {}),
    "LSTM both ways": (
        lambda: Sequences(lambda: nn.LSTM(2, 16, batch_first=True, bidirectional=True)),
        lambda: pictures(12, 2),
        {},
    ),
    "LSTM, float16": (
        lambda: Sequences(lambda: nn.LSTM(2, 16, batch_first=True)),
        lambda: pictures(12, 2),
        {"precision": "16-mixed"},
    ),
    "LSTM cell": (lambda: Sequences(lambda: nn.LSTMCell(2, 16)), lambda: pictures(12, 2), {}),
    "GRU cell": (lambda: Sequences(lambda: nn.GRUCell(2, 16)), lambda: pictures(12, 2), {}),
    "two layers": (Plain, lambda: pictures(5), {}),
    "logging": (Logging, lambda: pictures(5), {}),
}


@pytest.mark.parametrize(("make", "data", "options"), KINDS.values(), ids=KINDS)
def test_bits_are_those_without_us_and_neurons_are_proved(tmp_path, make, data, options):
    probes = [Distortion(every_n_steps=2), Persistence(every_n_steps=3), Sharpness(every_n_steps=4)]
    monitor = TopologyMonitor(probes, report=False, verbose=False, max_overhead=None, on_error="raise")
    options = {"accelerator": "gpu", "max_steps": 16, "max_epochs": -1} | options
    _, plain = left_behind(make, [], data, tmp_path, **options)
    _, again = left_behind(make, [], data, tmp_path, **options)
    assert differences(plain, again) == []  # else there is nothing to compare
    trainer, watched = left_behind(make, [monitor], data, tmp_path, **options)
    assert differences(plain, watched) == []
    assert monitor.groups
    assert {group.status for group in monitor.groups} == {"verified"}
    assert float(trainer.callback_metrics["topology/coverage"]) == 1.0
    assert trainer.callback_metrics["topology/sharpness"] > 0
    names = {event.name.value for event in happened(monitor.events)}
    assert not names & {"probe_failed", "instability", "topology_breakdown", "unseen_step"}, monitor.events


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_attention_that_does_not_tell_what_it_drops_drops_what_it_would_have(tmp_path, precision):
    monitor = TopologyMonitor([Distortion(2), Sharpness(2)], report=False, verbose=False, max_overhead=None)
    options = {"accelerator": "gpu", "max_steps": 8, "max_epochs": -1, "precision": precision}

    def make():
        return Attention(0.1, SDPBackend.CUDNN_ATTENTION)

    _, plain = left_behind(make, [], tokens, tmp_path, **options)
    _, again = left_behind(make, [], tokens, tmp_path, **options)
    assert differences(plain, again) == []
    _, watched = left_behind(make, [monitor], tokens, tmp_path, **options)
    assert differences(plain, watched) == []
    assert {group.status for group in monitor.groups} == {"verified"}
    assert any("enable_cudnn_sdp(False)" in event.message for event in monitor.events)


def test_a_leap_is_found_at_its_step_and_the_guard_holds_it(tmp_path):
    options = {"accelerator": "gpu", "max_steps": 40, "max_epochs": -1}
    monitor = TopologyMonitor(report=False, verbose=False)
    left_behind(lambda: Plain(leap=25), [monitor], lambda: pictures(5), tmp_path, **options)
    broken = [event for event in monitor.events if event.name == "topology_breakdown"]
    assert [event.step for event in broken][:1] == [26]
    guard, held = TopologyStepGuard(0.5), TopologyMonitor(report=False, verbose=False)
    left_behind(lambda: Plain(leap=25), [guard, held], lambda: pictures(5), tmp_path, **options)
    assert not [event for event in held.events if event.name == "topology_breakdown"]


def test_an_ordinary_step_waits_for_the_device_at_most_once(tmp_path):
    monitor = TopologyMonitor(report=False, verbose=False)
    waits = [0]

    class Listening(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("warn")
            waits.append(0)

    def heard(message, category, filename, lineno, file=None, line=None):
        if "synchroniz" in str(message) and "lightning_topo" in filename:
            waits[-1] += 1

    options = {"accelerator": "gpu", "max_steps": 200, "max_epochs": -1}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        kept, warnings.showwarning = warnings.showwarning, heard
        try:
            left_behind(Listening, [monitor], lambda: pictures(5), tmp_path, **options)
        finally:
            warnings.showwarning = kept
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) > 200
    assert max(waits) > 1, "nothing was heard"
    assert statistics.median(waits) <= 1


def test_a_step_captured_in_a_graph_is_said_to_be_unseen(tmp_path):
    """The whole of step and update is replayed: no hook of the optimizer runs."""

    class Captured(Noted):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
            self.graph = None

        def step(self, batch):
            optimizer = self.optimizers(use_pl_optimizer=False)
            if self.graph is None:
                self.x, self.y = batch[0].clone(), batch[1].clone()
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        optimizer.zero_grad(set_to_none=True)
                        F.cross_entropy(self.net(self.x), self.y).backward()
                        optimizer.step()
                torch.cuda.current_stream().wait_stream(stream)
                self.graph = torch.cuda.CUDAGraph()
                optimizer.zero_grad(set_to_none=True)
                with torch.cuda.graph(self.graph):
                    F.cross_entropy(self.net(self.x), self.y).backward()
                    optimizer.step()
            self.x.copy_(batch[0])
            self.y.copy_(batch[1])
            self.graph.replay()
            return

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2, capturable=True)

    monitor = TopologyMonitor(report=False, verbose=False)
    options = {"accelerator": "gpu", "max_steps": -1, "max_epochs": 1}
    _, plain = left_behind(Captured, [], lambda: pictures(5), tmp_path, **options)
    _, watched = left_behind(Captured, [monitor], lambda: pictures(5), tmp_path, **options)
    assert differences(plain | {"attributes": 0}, watched | {"attributes": 0}) == []
    assert {event.name.value for event in monitor.events} & {"unseen_step", "outside_change", "probe_failed"}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_module_is_left_as_it_is(tmp_path, mode):
    class Compiled(Plain):
        def __init__(self):
            super().__init__()
            self.run = torch.compile(self.net, mode=mode)

        def step(self, batch):
            return F.cross_entropy(self.run(batch[0]), batch[1])

    monitor = TopologyMonitor(report=False, verbose=False, on_error="raise")
    options = {"accelerator": "gpu", "max_steps": 12, "max_epochs": -1}
    _, plain = left_behind(Compiled, [], lambda: pictures(5), tmp_path, **options)
    torch._dynamo.reset()  # Lightning has moved the first one's weights to the host, where its graphs look for them
    _, watched = left_behind(Compiled, [monitor], lambda: pictures(5), tmp_path, **options)
    assert differences(plain | {"attributes": 0}, watched | {"attributes": 0}) == []
    assert monitor.groups
