"""Whole experts: guessed from the structure beside a router, and proved by changing their places."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder
from lightning_topo.neurons import find_neuron_groups
from lightning_topo.neurons._experts import guess_expert_groups
from lightning_topo.neurons._tape_coupling import couple

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))


class Routed(nn.Module):
    """Each sample goes to the best of several experts, weighed by its score."""

    def __init__(self, n: int = 4, router: int | None = None, *, alike: bool = True) -> None:
        super().__init__()
        self.inner, self.router, self.out = nn.Linear(5, 6), nn.Linear(6, router or n), nn.Linear(6, 2)
        widths = [7] * n if alike else range(7, 7 + n)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, w), nn.Tanh(), nn.Linear(w, 6)) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        score, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(x[mine]) * score[mine, None])
        return self.out(out)


class Stacked(nn.Module):
    """The weights of all experts in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(5, 4), nn.Linear(6, 2)
        self.up = nn.Parameter(torch.randn(4, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        score, chosen = self.router(x).softmax(-1).topk(1, -1)
        return self.out(torch.tanh(torch.bmm(x[:, None], self.up[chosen[:, 0]])[:, 0] * score))


def guesses(net: nn.Module) -> list:
    torch.manual_seed(0)
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(net(X).square().mean())
    tapes = recorder.end()
    return guess_expert_groups(net, couple(tapes).trace)


def test_experts_go_with_their_rows_of_the_router() -> None:
    [guess] = guesses(Routed())
    assert (guess.name, guess.kind, guess.n) == ("experts", "expert", 4)
    assert set(guess.params) == {
        *(f"experts.*.{k}.{part}" for k in (0, 2) for part in ("weight", "bias")),
        "router.weight",
        "router.bias",
    }


@pytest.mark.parametrize("make", [Routed, Stacked])
def test_a_guess_that_is_right_is_proved(make) -> None:
    torch.manual_seed(0)
    net = make()
    groups = find_neuron_groups(net, X)
    [experts] = [group for group in groups if group.kind == "expert"]
    assert (experts.n, experts.status) == (4, "verified")
    order = torch.tensor([2, 0, 3, 1])
    moved = experts.permute(dict(net.named_parameters()), order)
    torch.testing.assert_close(torch.func.functional_call(net, moved, X), net(X))


def test_a_guess_that_is_wrong_is_not_among_the_groups() -> None:
    class Favoured(Routed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.out(self.experts[0](torch.tanh(self.inner(x))))

    torch.manual_seed(0)
    net = Favoured()
    assert len(guesses(net)) == 1
    assert "expert" not in {group.kind for group in find_neuron_groups(net, X)}


@pytest.mark.parametrize("net", [Routed(router=5), Routed(alike=False)], ids=["another router", "of other shapes"])
def test_without_a_router_of_as_many_or_one_shape_nothing_is_guessed(net) -> None:
    assert guesses(net) == []


def test_a_list_with_places_that_hold_nothing_is_no_list_of_experts() -> None:
    """As those of x-transformers: `ModuleList([None, layer, None])`."""
    net = Routed()
    net.norms = nn.ModuleList([None, nn.Linear(6, 6), None])  # type: ignore[list-item]
    net.empty = nn.ModuleList([None, None])  # type: ignore[list-item]
    assert [guess.name for guess in guesses(net)] == ["experts"]


class Unheard(nn.ModuleList):
    """A list that cannot say how long it is."""

    def __len__(self) -> int:
        raise TypeError("how long?")


def test_a_guess_that_fails_takes_no_group() -> None:
    net = Routed()
    net.others = Unheard()
    net.others.add_module("a", nn.Linear(2, 2))
    net.others.add_module("b", nn.Linear(2, 2))
    with pytest.raises(TypeError, match="how long"):
        guesses(net)
    assert {"inner", "experts.0.0"} <= {group.name for group in find_neuron_groups(net, X)}


def test_layers_one_after_the_other_are_no_experts() -> None:
    """A list of modules of one shape, and nothing chooses among them."""
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    assert guesses(net) == []


class Picked(nn.Module):
    """Experts stacked in weights, of which an index of data picks those of each token."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 5, 6)), nn.Parameter(torch.randn(4, 6, 3))
        self.shift = nn.Parameter(torch.randn(4, 6))
        self.function = forward

    def forward(self, x, *more):
        return self.function(self, x, *more)


def chosen_two(m, x):
    """The two best experts of each token, by their indices."""
    weights, i = m.router(x).softmax(-1).topk(2, -1)
    hidden = F.relu(torch.einsum("nd,nkdf->nkf", x, m.up[i]) + m.shift[i])
    return (weights[..., None] * torch.einsum("nkf,nkfo->nko", hidden, m.down[i])).sum(1)


def shifted_first(m, x):
    weights, i = m.router(x).softmax(-1).topk(2, -1)
    hidden = F.relu(m.shift[i] + torch.einsum("nd,nkdf->nkf", x, m.up[i]))
    return (weights[..., None] * torch.einsum("nkf,nkfo->nko", hidden, m.down[i])).sum(1)


def chosen_one(m, x):
    i = m.router(x).argmax(-1)
    hidden = F.relu(torch.bmm(x[:, None], m.up.index_select(0, i)))
    return torch.bmm(hidden, m.down.index_select(0, i))[:, 0] * m.router(x).softmax(-1).amax(-1, keepdim=True)


def given(m, x, i):
    """The expert of each token is data."""
    return torch.einsum("nf,nfo->no", F.relu(torch.einsum("nd,ndf->nf", x, m.up[i]) + m.shift[i]), m.down[i])


def mixed_first(m, x, i, j):
    """Units of two experts are added up before they are read: they have to change places together."""
    hidden = F.relu(torch.einsum("nd,nkdf->nkf", x, m.up[torch.stack([i, j], 1)])).sum(1)
    return torch.einsum("nf,nfo->no", hidden, m.down[i])


def read_by_others(m, x, i, j):
    """What the units of one expert say is read with the weights of another."""
    return torch.einsum("nf,nfo->no", F.relu(torch.einsum("nd,ndf->nf", x, m.up[i])), m.down[j])


def read_by_all(m, x, i):
    return (F.relu(torch.einsum("nd,ndf->nf", x, m.up[i])) @ m.down).sum(0)


TOKENS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
FIRST, SECOND = torch.arange(24) % 4, torch.arange(24) // 6


@pytest.mark.parametrize(
    ("function", "inputs", "blocks"),
    [
        (chosen_two, (TOKENS,), (4,)),
        (shifted_first, (TOKENS,), (4,)),
        (chosen_one, (TOKENS,), (4,)),
        (given, (TOKENS, FIRST), (4,)),
        (mixed_first, (TOKENS, FIRST, SECOND), ()),
        (read_by_others, (TOKENS, FIRST, SECOND), ()),
        (read_by_all, (TOKENS, FIRST), ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_units_of_experts_that_an_index_picks(function, inputs, blocks) -> None:
    model = Picked(function)
    [group] = [group for group in find_neuron_groups(model, inputs) if "up" in group.params and group.kind == "unit"]
    assert (group.n, group.block_shape, group.status) == (6, blocks, "verified")
    assert "down" in group.params
    order = torch.cat([torch.randperm(6) + 6 * block for block in range(group.n_blocks)])
    moved = copy.deepcopy(model)
    moved.load_state_dict(group.permute(dict(model.named_parameters()), order))
    torch.testing.assert_close(moved(*inputs), model(*inputs))


def test_whole_experts_that_an_index_picks_change_places_with_their_rows_of_the_router() -> None:
    model = nn.ModuleDict({"moe": Picked(chosen_two)})
    [group] = [g for g in find_neuron_groups(model, run=lambda m: m["moe"](TOKENS)) if g.kind == "expert"]
    assert (group.n, group.status) == (4, "verified")
    assert set(group.params) >= {"moe.up", "moe.down", "moe.shift", "moe.router.weight"}


class OfTheModel(nn.Module):
    """Experts whose weights and biases are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.W, self.b = nn.Parameter(torch.randn(4, 5, 3)), nn.Parameter(torch.randn(4, 3))
        self.router = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        score, chosen = self.router(x).softmax(-1).max(-1)
        return torch.tanh((x[:, None] @ self.W[chosen])[:, 0] + self.b[chosen]) * score[:, None]


def test_experts_that_are_parameters_of_the_model_go_with_their_biases() -> None:
    [group] = [group for group in find_neuron_groups(OfTheModel(), X) if group.kind == "expert"]
    assert (group.name, group.n, group.status) == ("W", 4, "verified")
    assert {piece.param for piece in group.slices} == {"W", "b", "router.weight", "router.bias"}
