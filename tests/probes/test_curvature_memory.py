"""The sharpness of recorded steps in little more memory than one of these steps takes, and of the same value."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import peak_bytes
from lightning_topo._tape import StepRecorder, TapeLoss, accepted
from lightning_topo._tape.footprint import graph_bytes
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo.loops._training import LoopTraining
from lightning_topo.probes import Capture, Clouds, Sharpness, StepEdge
from lightning_topo.probes import _approach as approach
from lightning_topo.stability import LanczosSettings
from lightning_topo.stability._lanczos import extreme_eigenvalues

N, TIME, CLASSES = 32, 16, 12


class Transformer(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(1)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x).flatten(0, 1)


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(CLASSES, 16), nn.Flatten(), nn.Linear(16 * TIME, 64), nn.BatchNorm1d(64), nn.Tanh(),
        nn.Linear(64, TIME * CLASSES), nn.Unflatten(1, (TIME, CLASSES)), nn.Flatten(0, 1),
    )  # fmt: skip


class Setting:
    """Four recorded steps of 32 samples each, as a probe is given them."""

    def __init__(self, net: nn.Module, *, masked: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = [torch.randint(CLASSES, (2, N, TIME), generator=generator) for _ in range(4)]
        self.net, self.batches = net, [(x, y) for x, y in draw]
        if masked:
            left_out = torch.arange(TIME) > torch.arange(N)[:, None] % TIME
            self.batches = [(x, y.masked_fill(left_out, -100)) for x, y in self.batches]
        self.loss = TrainingLoss(LoopTraining.of(net, []), 0)
        recorder = StepRecorder()
        for k in range(4):
            recorder.begin(net)
            recorder.loss(self.loss_on(k))
            self.loss.keep([accepted(tape) for tape in recorder.end()], None)

    def loss_on(self, k: int) -> Tensor:
        x, y = self.batches[k]
        return F.cross_entropy(self.net(x), y.flatten())

    def step(self) -> None:
        self.loss_on(0).backward()

    def measure(self, probe: Sharpness | StepEdge, monkeypatch: pytest.MonkeyPatch, small: int) -> dict[str, float]:
        monkeypatch.setattr(approach, "SMALL", small)
        clouds = Clouds([], {})
        optimizer = torch.optim.SGD(self.net.parameters(), 0.1)
        made = Capture(1, 0, self.net, [], clouds, None, clouds, [optimizer], self.loss, None)
        return dict(probe.measure(made).values[""])


@pytest.mark.parametrize("probe", [Sharpness(max_products=2), StepEdge()])
def test_the_peak_is_about_that_of_a_training_step(probe, monkeypatch) -> None:
    torch.manual_seed(0)
    setting = Setting(Transformer())
    step = peak_bytes(setting.step)
    setting.net.zero_grad()
    whole = peak_bytes(lambda: setting.measure(probe, monkeypatch, 2**40))
    in_parts = peak_bytes(lambda: setting.measure(probe, monkeypatch, 0))
    assert in_parts <= 2 * step
    assert whole > 4 * step  # which is what the parts are for


@pytest.mark.parametrize(
    ("make", "masked", "size"), [(Transformer, False, 8), (Transformer, True, 8), (normalised, False, N)]
)
def test_parts_have_the_value_of_the_whole(make, masked, size, monkeypatch) -> None:
    torch.manual_seed(0)
    setting = Setting(make(), masked=masked)
    probe = Sharpness(max_products=5)  # from one start: no matter whether it has converged
    whole, parts = (setting.measure(probe, monkeypatch, small) for small in (2**40, 0))
    assert parts["sharpness"] == pytest.approx(whole["sharpness"], rel=1e-4)
    assert "micro_batch" not in whole
    assert parts["micro_batch"] <= size  # samples that meet keep their step whole


def test_small_steps_go_together_and_none_larger_than_the_room() -> None:
    torch.manual_seed(0)
    setting = Setting(Transformer())
    with setting.loss(None) as loss:
        assert isinstance(loss, TapeLoss)
        needed = graph_bytes(loss.tapes[0], torch.float32)
        pairs = loss.within(2 * needed)
        assert [part.n_samples for _, part in pairs] == [2 * N, 2 * N]
        halves = loss.within(needed // 2)
        assert [part.n_samples for _, part in halves] == [N // 2] * 8
        for parts in (pairs, halves):
            torch.testing.assert_close(sum(weight * part() for weight, part in parts), loss())


def test_a_step_that_is_cut_is_cut_smaller_where_memory_runs_out(monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(approach, "SMALL", 2**40)
    setting, sizes = Setting(Transformer()), []

    def measure(tried: approach.Approach) -> str:
        sizes.append(tried.part_size(loss))
        if (sizes[-1] or 4 * N) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "found"

    with setting.loss(None) as loss:
        assert approach.adapted(approach.Approach(), loss, measure)[1] == "found"
    assert sizes == [None, N, N // 2, N // 4]


def test_a_basis_of_five_vectors_finds_what_a_large_one_finds(monkeypatch) -> None:
    n = 20_000
    spectrum = torch.cat([torch.tensor([5.0, 4.6, 4.5, 4.4, -3.0]), torch.linspace(-1.0, 2.0, n - 5)])
    start = torch.randn(n, generator=torch.Generator().manual_seed(0))
    settings = LanczosSettings(tolerance=1e-3, max_products=60, n_largest=1)
    large = extreme_eigenvalues(lambda v: spectrum * v, start.clone(), settings)
    monkeypatch.setattr("lightning_topo.stability._lanczos._MOST_BYTES", 0)
    found = []
    peak = peak_bytes(lambda: found.append(extreme_eigenvalues(lambda v: spectrum * v, start.clone(), settings)))
    assert found[0].largest == pytest.approx(5.0, rel=1e-5)
    assert (found[0].converged, large.converged) == (True, True)
    assert found[0].n_products <= 1.5 * large.n_products
    assert large.n_products > 8  # so that five vectors were not enough for all
    assert found[0].smallest == pytest.approx(-3.0, rel=0.05)
    assert float((spectrum * found[0].vector - 5.0 * found[0].vector).norm()) < 2e-2
    assert peak <= 9.5 * 4 * n
