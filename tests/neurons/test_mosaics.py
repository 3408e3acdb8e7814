"""Constants that are written part by part: the axes of the whole against permutations of it, and models around it."""

import random

import pytest
import torch
from torch import Tensor, nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, centres, check_exchangeable, free_axes


def empty(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def stacked(*parts: Tensor) -> Tensor:
    out = empty(4, len(parts), 6)
    for t, part in enumerate(parts):
        out[:, t] = part
    return out


def joined(x: Tensor, y: Tensor) -> Tensor:
    out = empty(4, x.shape[1] + y.shape[1])
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = y
    return out


def shifted(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[1:] = x[:-1]
    return out


def overwritten(x: Tensor, y: Tensor) -> Tensor:
    out = empty(4, 6)
    out[:] = x
    out[:, 2:] = y
    return out


def read_between(x: Tensor, y: Tensor) -> Tensor:
    out = empty(4, 2, 6)
    out[:, 0] = x
    first = out.sum(1)
    out[:, 1] = y
    return first.unsqueeze(1) * out


def one_by_one(x: Tensor) -> Tensor:
    out = empty(4, 6)
    for i in range(4):
        for j in range(6):
            out[i, j] = x[i, j]
    return out


def by_sample(x: Tensor) -> Tensor:
    out = empty(2, 3, 6)
    for i in range(2):
        row = out[i]
        for t in range(3):
            row[t] = x * (i + t)
    return out


def by_another_view(x: Tensor, y: Tensor) -> Tensor:
    out = empty(2, 4, 6)
    out[0] = x
    out.view(8, 6)[4:] = y
    return out


def seen_through_a_view(x: Tensor, y: Tensor) -> Tensor:
    out = empty(2, 4, 6)
    out[0] = x
    rows = out.view(8, 6)
    out[1] = y
    return rows


def turned(x: Tensor) -> Tensor:
    out = empty(4, 6)
    view = out[0]
    out.t_()
    out[0] = x
    return view.clone()


def kept(x: Tensor, y: Tensor) -> list[Tensor]:
    state = empty(2, 4, 6)
    state[0] = x
    state[1] = y
    return [state[0] * 2, state[1].tanh()]


FREE = {
    "stacked": (stacked, [(4, 6), (4, 6), (4, 6)], [4, 6]),
    "side by side": (joined, [(4, 3), (4, 5)], [3, 4, 5]),
    "shifted": (shifted, [(5, 6)], [4, 6]),
    "written twice": (overwritten, [(4, 6), (4, 4)], [2, 4, 4]),
    "read in between": (read_between, [(4, 6), (4, 6)], [4, 6]),
    "entry by entry": (one_by_one, [(4, 6)], []),
    "through views of views": (by_sample, [(6,)], [6]),
    "through a view that is no box": (by_another_view, [(4, 6), (4, 6)], []),
    "seen through a view that is no box": (seen_through_a_view, [(4, 6), (4, 6)], []),
    "turned in between": (turned, [(4,)], []),
    "each part by itself": (kept, [(4, 6), (4, 6)], [4, 4, 6, 6]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_is_left_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_left_free_that_cannot_be_exchanged(seed: int) -> None:
    """Random boxes of a tensor written, overwritten, added to and read, in random order."""
    draw = random.Random(seed)

    def box(out: Tensor) -> tuple[Tensor, list[slice | int]]:
        chosen: list[slice | int] = []
        for size in (4, 6):
            start = draw.choice([0, 0, 2, size // 2])
            chosen.append(draw.choice([slice(None), slice(None), slice(start, size), slice(0, size // 2), start]))
        view = out
        for dim in (1, 0):
            at = chosen[dim]
            view = view.select(dim, at) if isinstance(at, int) else view[(slice(None),) * dim + (at,)]
        return (view.unsqueeze(0).transpose(0, -1) if draw.random() < 0.3 else view), chosen

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        nonlocal draw
        draw = random.Random(seed)
        out, results = empty(4, 6), []
        early, _ = box(out)
        flat = out.view(24) if draw.random() < 0.2 else None
        for _ in range(draw.randint(1, 5)):
            view, chosen = box(out)
            source = draw.choice([x, y, x.sin() * y])[tuple(chosen)]
            if view.dim() > source.dim():
                source = source.unsqueeze(0).transpose(0, -1)
            kind = draw.choice(["copy", "copy", "copy", "add", "fill", "read", "read whole"])
            if kind == "copy":
                view.copy_(source)
            elif kind == "add":
                view.add_(source)
            elif kind == "fill":
                view.fill_(0.5)
            elif kind == "read":
                results.append(view * source)
            else:
                results.append(out * x)
        return [
            *results,
            *([out * y] if draw.random() < 0.5 else []),
            early.tanh(),
            *([flat.tanh()] if flat is not None else []),
        ]

    free_axes(program, (4, 6), (4, 6))


def in_a_loop(m, x):
    h, out = torch.zeros(len(x), 12), torch.empty(len(x), x.shape[1], 12)
    for t in range(x.shape[1]):
        h = torch.tanh(m.first(x[:, t]) + m.again(h))
        out[:, t] = h
    return m.last(out)


def from_the_last(m, x):
    out = torch.zeros(len(x), x.shape[1] + 1, 12)
    for t in range(x.shape[1]):
        out[:, t + 1] = torch.tanh(m.first(x[:, t]) + m.again(out[:, t]))
    return m.last(out[:, 1:])


def class_token(m, x):
    out = torch.empty(len(x), x.shape[1] + 1, 12)
    out[:, 0] = m.token
    out[:, 1:] = m.first(x)
    return m.last(m.again(out.tanh()).sin())


@pytest.mark.parametrize("forward", [in_a_loop, from_the_last, class_token])
def test_units_whose_values_are_written_into_slices_are_found(forward) -> None:
    net = Made(forward, first=nn.Linear(5, 12), again=nn.Linear(12, 12), last=nn.Linear(12, 3), token=centres(12))
    groups = find_neuron_groups(net, X)
    assert groups[0].n == 12
    assert {group.status for group in groups} == {"verified"}
    assert len(groups) == (2 if forward is class_token else 1)
    assert ("token" in groups[0].params) == (forward is class_token)


def padded(h: Tensor) -> Tensor:
    out = h.new_zeros(2, 9, 12)
    out[:, 1:8] = h
    return out


def mixed(h: Tensor) -> Tensor:
    out = torch.zeros_like(h).unsqueeze(2).repeat(1, 1, 2, 1)
    out[:, :, 0], out[:, :, 1] = h.tanh(), h.sin()
    return out.sum(2)


@pytest.mark.parametrize("between", [padded, mixed])
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


def gained(h: Tensor) -> Tensor:
    gains = torch.zeros(12)
    for i in range(12):
        gains[i] = 1.0 + i
    return h * gains


def each_by_itself(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for i in range(12):
        out[..., i] = h[..., i] * i
    return out


@pytest.mark.parametrize("between", [gained, each_by_itself])
def test_numbers_by_place_along_the_neurons_leave_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


def test_units_that_are_moved_along_are_exchangeable_but_for_the_one_that_drops_out() -> None:
    def between(h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out[..., :-1] = h[..., 1:]
        return out

    assert [(g.n, g.status) for g in find_neuron_groups(Between(between), X)] == [(11, "verified")]


def test_weights_put_together_from_parts_are_weights() -> None:
    def forward(m, x):
        weight = torch.empty(12, 5)
        weight[:4], weight[4:] = m.few, m.many
        return m.last((x @ weight.T).tanh())

    net = Made(forward, few=centres(4, 5), many=centres(8, 5), last=nn.Linear(12, 3))
    assert [(g.name, g.n, g.status) for g in find_neuron_groups(net, X)] == [
        ("few", 4, "verified"),
        ("many", 8, "verified"),
    ]
