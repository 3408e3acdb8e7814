"""Whether `instability` is silent where nothing is wrong: ten kinds of training, ten seeds each, under a default watch.

    python -m benchmarks.healthy [--kinds vae dqn] [--seeds 10] [--out healthy.jsonl]

Fixed before any run was looked at: the ten kinds below with their customary learning rates, 300 steps each, the seeds 0
to 9, `TopologyWatch(model, optimizer)` as it is without arguments (but for the folder, the page and the printing). An
`instability` is a false alarm: in none of these kinds is the learning rate raised, and each was chosen because people
train it so. Some have losses that trouble a naive rule: heavy tails, draws, rewards to come, a game of two losses.
A run whose weights are not finite at its end would be no healthy one, and is counted apart.
"""

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_topo import TopologyWatch
from lightning_topo.demo import digits

STEPS = 300
Update = tuple[Tensor, Optimizer]
"""A loss, and the optimizer that lowers it."""
Training = tuple[nn.Module, list[Optimizer], Iterator[Callable[[], Iterator[Update]]]]
"""A model, its optimizers, and what each step does."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the first instability, if any, with its words; the first and the last losses, by five."""

    kind: str
    seed: int
    false_at: int | None
    message: str
    finite: bool
    first_loss: float
    last_loss: float
    n_events: int


def images(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 32 digits of 8 x 8 pixels, for ever."""
    x, y = digits(1797).tensors
    draw = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(x), (32,), generator=draw)
        yield x[chosen], y[chosen]


def text(seed: int) -> Iterator[Tensor]:
    """Batches of 16 pieces of 33 characters from the standard library's own source."""
    source = Path(argparse.__file__).read_bytes()[:60_000]
    codes = torch.tensor([min(c, 127) for c in source])
    draw = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(codes) - 33, (16,), generator=draw)
        yield torch.stack([codes[s : s + 33] for s in starts.tolist()])


def mlp(seed: int) -> Training:
    """A classifier by Adam."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return classifier(net, torch.optim.Adam(net.parameters(), 3e-3), seed)


def cnn(seed: int) -> Training:
    """A small convolutional network with batch norm by AdamW."""
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    return classifier(net, torch.optim.AdamW(net.parameters(), 3e-3), seed)


def classifier(net: nn.Module, optimizer: Optimizer, seed: int) -> Training:
    """Digits told apart by cross-entropy."""
    return single(net, optimizer, (lambda x=x, y=y: F.cross_entropy(net(x), y) for x, y in images(seed)))


def single(net: nn.Module, optimizer: Optimizer, losses: Iterator[Callable[[], Tensor]]) -> Training:
    """One loss and one update a step."""

    def once(loss: Callable[[], Tensor]) -> Iterator[Update]:
        yield loss(), optimizer

    return net, [optimizer], ((lambda loss=loss: once(loss)) for loss in losses)


def autoencoder(seed: int) -> Training:
    """Lightning's own first example, on digits."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3), nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    return single(net, optimizer, (lambda x=x: F.mse_loss(net(x), x) for x, _ in images(seed)))


def vae(seed: int) -> Training:
    """A variational autoencoder: its loss has draws in it."""
    net = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 16)), nn.Linear(8, 64)])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def loss(x: Tensor) -> Tensor:
        mean, log_variance = net[0](x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)
        return ((net[1](z) - x).square().sum(1) + divergence).mean()

    return single(net, optimizer, (lambda x=x: loss(x) for x, _ in images(seed)))


class Recurrent(nn.Module):
    """Next characters by a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.head = nn.Embedding(128, 32), nn.GRU(32, 64, batch_first=True), nn.Linear(64, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.tokens(tokens))[0])


class Attending(nn.Module):
    """Next characters by two causal transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(128, 64), nn.Embedding(32, 64), nn.Linear(64, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True) for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        return self.head(h)


def language(net: nn.Module, optimizer: Optimizer, seed: int) -> Training:
    """Cross-entropy of the next character."""
    return single(
        net,
        optimizer,
        (lambda t=t: F.cross_entropy(net(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten()) for t in text(seed)),
    )


def gru(seed: int) -> Training:
    """A recurrent language model."""
    net = Recurrent()
    return language(net, torch.optim.Adam(net.parameters(), 3e-3), seed)


def transformer(seed: int) -> Training:
    """A transformer language model with dropout."""
    net = Attending()
    return language(net, torch.optim.AdamW(net.parameters(), 1e-3), seed)


def heavy_tails(seed: int) -> Training:
    """Regression by momentum on targets with Student's noise of three degrees of freedom: single losses leap."""
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    noise = torch.distributions.StudentT(3.0)

    def batches() -> Iterator[Callable[[], Tensor]]:
        while True:
            x = torch.randn(32, 8)
            y = x[:, :1].sin() + noise.sample((32, 1))
            yield lambda x=x, y=y: F.mse_loss(net(x), y)

    return single(net, optimizer, batches())


def contrastive(seed: int) -> Training:
    """Two noisy views of each digit, to be told from those of the others."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def loss(x: Tensor) -> Tensor:
        views = [F.normalize(net(x + 0.3 * torch.randn_like(x)), dim=1) for _ in range(2)]
        return F.cross_entropy(views[0] @ views[1].T / 0.1, torch.arange(len(x)))

    return single(net, optimizer, (lambda x=x: loss(x) for x, _ in images(seed)))


def gan(seed: int) -> Training:
    """Points on a ring: two networks, each of which raises the other's loss."""
    parts = nn.ModuleDict(
        {
            "critic": nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)),
            "maker": nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)),
        }
    )
    critic, maker = parts["critic"], parts["maker"]
    optimizers = [torch.optim.Adam(part.parameters(), 1e-3, betas=(0.5, 0.9)) for part in (critic, maker)]

    def step() -> Iterator[Update]:
        angle = 2.0 * math.pi * torch.rand(64)
        real, made = torch.stack([angle.cos(), angle.sin()], 1), maker(torch.randn(64, 4))
        yield F.softplus(-critic(real)).mean() + F.softplus(critic(made.detach())).mean(), optimizers[0]
        yield F.softplus(-critic(made)).mean(), optimizers[1]

    def steps() -> Iterator[Callable[[], Iterator[Update]]]:
        while True:
            yield step

    return parts, list(optimizers), steps()


def dqn(seed: int) -> Training:
    """Values of a random walk with rewards: the targets grow as the network learns, and the loss with them."""
    net, target = (nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)) for _ in range(2))
    target.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    world = torch.randn(2, 4, 4) / 2.0

    def batches() -> Iterator[Callable[[], Tensor]]:
        step = 0
        while True:
            if step % 50 == 0:
                target.load_state_dict(net.state_dict())
            step += 1
            state, action = torch.randn(32, 4), torch.randint(2, (32,))
            following = torch.tanh(torch.einsum("bij,bj->bi", world[action], state))
            reward = 1.0 + following[:, 0]
            with torch.no_grad():
                wanted = reward + 0.9 * target(following).amax(1)
            yield lambda s=state, a=action, w=wanted: F.mse_loss(net(s).gather(1, a[:, None])[:, 0], w)

    return single(net, optimizer, batches())


KINDS = {
    "MLP": mlp,
    "CNN": cnn,
    "autoencoder": autoencoder,
    "VAE": vae,
    "GRU": gru,
    "transformer": transformer,
    "heavy tails": heavy_tails,
    "contrastive": contrastive,
    "GAN": gan,
    "DQN": dqn,
}


def run(kind: str, seed: int) -> Outcome:
    """One training under a default watch."""
    torch.manual_seed(seed)
    model, optimizers, steps = KINDS[kind](seed)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"dirpath": Path(folder) / "topology", "report": False, "verbose": False}
        with TopologyWatch(model, optimizers, planned_steps=STEPS, **options) as watch:
            for _, step in zip(range(STEPS), steps, strict=False):
                with watch.step():
                    for loss, optimizer in step():
                        optimizer.zero_grad()
                        watch.loss(loss)
                        loss.backward()
                        optimizer.step()
                        losses.append(float(loss.detach()))
            events = list(watch.events)
    alarms = [event for event in events if event.name == "instability"]
    return Outcome(
        kind,
        seed,
        alarms[0].step if alarms else None,
        alarms[0].message if alarms else "",
        all(bool(p.isfinite().all()) for p in model.parameters()),
        sum(losses[:5]) / 5,
        sum(losses[-5:]) / 5,
        len(events),
    )


def table(outcomes: list[Outcome]) -> str:
    """False alarms by kind."""
    lines = ["| training | runs | false alarms | not finite | loss at first | at last |", "|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(o.kind for o in outcomes):
        mine = [o for o in outcomes if o.kind == kind]
        first, last = (
            sorted(values)[len(mine) // 2] for values in zip(*((o.first_loss, o.last_loss) for o in mine), strict=True)
        )
        alarms, broken = sum(o.false_at is not None for o in mine), sum(not o.finite for o in mine)
        lines.append(f"| {kind} | {len(mine)} | {alarms} | {broken} | {first:.3g} | {last:.3g} |")
    alarms, broken = sum(o.false_at is not None for o in outcomes), sum(not o.finite for o in outcomes)
    lines.append(f"| **all** | {len(outcomes)} | {alarms} | {broken} | | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("docs/data/healthy.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    lines = arguments.out.read_text().splitlines() if arguments.out.is_file() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    known = {(o.kind, o.seed) for o in outcomes}
    with arguments.out.open("a") as file:
        for kind in arguments.kinds:
            for seed in range(arguments.seeds):
                if (kind, seed) not in known:
                    outcomes.append(run(kind, seed))
                    print(outcomes[-1], flush=True)
                    file.write(json.dumps(asdict(outcomes[-1])) + "\n")
                    file.flush()
    print(table(outcomes))


if __name__ == "__main__":
    main()
