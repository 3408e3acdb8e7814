"""Trainings of less usual makes, small and on random tensors: flows, fields, spikes, many updates from one batch."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.packages_models import Built, Supervised, Training, loader

RARE_TRAININGS: dict[str, Training] = {}

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]


def rare(name: str, *requires: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a builder into the table."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        RARE_TRAININGS[name] = Training(build, requires)
        return build

    return enter


class Trained(Supervised):
    """A model with a loss that is a function of it and a batch."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__(model, 1e-3)
        self._loss = loss

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self._loss(self.model, batch)


@rare("x-transformers decoder, 512 positions", "x_transformers")
def long_text() -> Built:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=64, depth=3, heads=4, rotary_pos_emb=True, attn_qk_norm=True, ff_glu=True, use_rmsnorm=True, attn_flash=True
    )
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=64, max_seq_len=520, attn_layers=layers))
    return Trained(model, lambda m, b: m(b["text"])), loader(2, text=torch.randint(64, (64, 513)))


@rare("x-transformers decoder, ALiBi, memory", "x_transformers")
def remembering_text() -> Built:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=3, heads=4, alibi_pos_bias=True, attn_num_mem_kv=4, attn_kv_heads=2)
    wrapped = TransformerWrapper(num_tokens=64, max_seq_len=64, num_memory_tokens=4, attn_layers=layers)
    return Trained(AutoregressiveWrapper(wrapped), lambda m, b: m(b["text"])), loader(
        8, text=torch.randint(64, (64, 33))
    )


@rare("PPO, 40 updates a batch")
def epochs_over_a_batch() -> Built:
    class Learner(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.policy, self.value = (
                nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n))
                for n in (2, 1)
            )

        def training_step(self, batch: dict[str, Tensor], index: int) -> None:
            state, optimizer = batch["state"], self.optimizers()
            with torch.no_grad():
                chances = torch.distributions.Categorical(logits=self.policy(state))
                action, reward = chances.sample(), torch.randn(len(state))
                before, advantage = chances.log_prob(action), reward - self.value(state)[:, 0]
            for _ in range(10):
                for some in torch.randperm(len(state)).split(64):
                    now = torch.distributions.Categorical(logits=self.policy(state[some]))
                    ratio = (now.log_prob(action[some]) - before[some]).exp()
                    gain = torch.min(ratio * advantage[some], ratio.clamp(0.8, 1.2) * advantage[some]).mean()
                    error = F.mse_loss(self.value(state[some])[:, 0], reward[some])
                    optimizer.zero_grad()
                    self.manual_backward(0.5 * error - gain - 0.01 * now.entropy().mean())
                    nn.utils.clip_grad_norm_(self.parameters(), 0.5)
                    optimizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 3e-4)

    return Learner(), loader(256, state=torch.randn(2048, 4))


@rare("gpytorch, a deep kernel", "gpytorch")
def gaussian_process() -> Built:
    import gpytorch

    x = torch.rand(64, 4)
    y = torch.sin(6 * x.sum(1))
    likelihood = gpytorch.likelihoods.GaussianLikelihood()

    class Process(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
            self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))

        def forward(self, x: Tensor) -> Any:
            z = self.net(x)
            return gpytorch.distributions.MultivariateNormal(self.mean(z), self.kernel(z))

    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, process := Process())
    return Trained(process, lambda m, b: -evidence(m(x), y)), loader(1, step=torch.arange(200))


@rare("torchdiffeq, Runge-Kutta", "torchdiffeq")
def neural_ode() -> Built:
    from torchdiffeq import odeint

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y**3)

    times = torch.linspace(0, 1, 10)

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return (odeint(model, batch["start"], times, method="rk4").transpose(0, 1) - batch["path"]).abs().mean()

    return Trained(Field(), loss), loader(16, start=torch.randn(64, 2), path=torch.randn(64, 10, 2))


@rare("e3nn, tensor products", "e3nn")
def equivariant() -> Built:
    from e3nn import o3
    from e3nn.nn import NormActivation

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.angles, hidden = o3.Irreps.spherical_harmonics(2), "16x0e+8x1o"
            self.product = o3.FullyConnectedTensorProduct("4x0e", self.angles, hidden)
            self.gate, self.out = NormActivation(hidden, F.silu), o3.Linear(hidden, "1x0e")

        def forward(self, x: Tensor, place: Tensor) -> Tensor:
            return self.out(self.gate(self.product(x, o3.spherical_harmonics(self.angles, place, normalize=True))))

    data = {"x": torch.randn(64, 4), "place": torch.randn(64, 3), "y": torch.randn(64, 1)}
    return Trained(Point(), lambda m, b: F.mse_loss(m(b["x"], b["place"]), b["y"])), loader(16, **data)


@rare("monai UNet", "monai")
def segmentation() -> Built:
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    data = {"images": torch.randn(16, 1, 32, 32), "truth": torch.randint(0, 2, (16, 1, 32, 32)).float()}
    model = UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2)
    return Trained(model, lambda m, b: loss(m(b["images"]), b["truth"])), loader(4, **data)


@rare("vector-quantize-pytorch, residual codes", "vector_quantize_pytorch")
def codes() -> Built:
    from vector_quantize_pytorch import ResidualVQ

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 16))
            self.codes = ResidualVQ(dim=16, codebook_size=32, num_quantizers=3, kmeans_init=True)
            self.back = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 20))

        def forward(self, x: Tensor) -> Tensor:
            coded, _, distance = self.codes(self.into(x)[:, None])
            return F.mse_loss(self.back(coded[:, 0]), x) + distance.sum()

    return Trained(Coder(), lambda m, b: m(b["x"])), loader(32, x=torch.randn(256, 20))


@rare("snntorch, spikes", "snntorch")
def spiking() -> Built:
    import snntorch

    class Spikes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            gradient = snntorch.surrogate.fast_sigmoid()
            self.first, self.last = nn.Linear(28, 40), nn.Linear(40, 10)
            self.hidden, self.out = (snntorch.Leaky(beta=0.9, spike_grad=gradient) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            hidden, out, total = self.hidden.init_leaky(), self.out.init_leaky(), 0
            for _ in range(8):
                spikes, hidden = self.hidden(self.first(x), hidden)
                _, out = self.out(self.last(spikes), out)
                total = total + out
            return total

    data = {"x": torch.rand(64, 28), "y": torch.randint(10, (64,))}
    return Trained(Spikes(), lambda m, b: F.cross_entropy(m(b["x"]), b["y"])), loader(16, **data)


@rare("normflows, RealNVP", "normflows")
def flow() -> Built:
    import normflows as nf

    layers = []
    for _ in range(4):
        layers += [
            nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 32, 32, 2], init_zeros=True)),
            nf.flows.Permute(2, mode="swap"),
        ]
    model = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(2), layers)
    return Trained(model, lambda m, b: m.forward_kld(b["x"])), loader(64, x=torch.randn(256, 2))


@rare("pytorch-metric-learning, mined triplets", "pytorch_metric_learning")
def metric() -> Built:
    from pytorch_metric_learning import losses, miners

    loss, miner = losses.TripletMarginLoss(), miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")

    def of_triplets(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        z = model(batch["x"])
        return loss(z, batch["y"], miner(z, batch["y"]))

    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    return Trained(model, of_triplets), loader(32, x=torch.randn(256, 16), y=torch.randint(5, (256,)))


@rare("torch.func, a differential equation")
def physics() -> Built:
    """The derivative is taken by `vmap` and `jacrev` inside of the loss."""
    from torch.func import jacrev, vmap

    def residual(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        def u(x: Tensor) -> Tensor:
            return model(x[None])[0, 0]

        slope = vmap(jacrev(u))(batch["x"])[:, 0]
        return (slope + vmap(u)(batch["x"])).square().mean() + (model(torch.zeros(1, 1)) - 1).square().sum()

    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return Trained(model, residual), loader(32, x=torch.rand(256, 1))


@rare("a GRU on packed sequences")
def packed() -> Built:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(50, 16), nn.Linear(48, 5)
            self.rnn = nn.GRU(16, 24, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)

        def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
            rows = pack_padded_sequence(self.embed(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.out(pad_packed_sequence(self.rnn(rows)[0], batch_first=True)[0].mean(1))

    data = {
        "words": torch.randint(50, (128, 12)),
        "lengths": torch.randint(3, 13, (128,)),
        "y": torch.randint(5, (128,)),
    }
    return Trained(Tagger(), lambda m, b: F.cross_entropy(m(b["words"], b["lengths"]), b["y"])), loader(16, **data)
