"""Picking and writing entries: the rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, centres, check_exchangeable, free_axes

FREE = {
    "rows by a list": (lambda x: x[torch.tensor([0, 2, 2])], [(6, 4)], [4]),
    "rows by index_select": (lambda x: x.index_select(0, torch.tensor([0, 2, 2])), [(6, 4)], [4]),
    "entries by two lists": (lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 0])], [(3, 4, 5)], [4]),
    "entries by a mask of itself": (lambda x: x[x > 0], [(3, 4)], []),
    "a mask picks": (lambda x: x.masked_select(x > 0), [(3, 4)], []),
    "filled where it is large": (lambda x: x.masked_fill(x > 0, 0.0), [(3, 4)], [3, 4]),
    "filled by a mask of data": (lambda x: x.masked_fill(torch.tensor([True, False, False, True]), 0.0), [(3, 4)], [3]),
    "chosen between": (lambda x, y: torch.where(x > y, x, y), [(3, 4), (4,)], [3, 4]),
    "gathered alike in all columns": (lambda x: x.gather(0, torch.zeros(2, 4, dtype=torch.long)), [(6, 4)], [4]),
    "gathered by its own order": (lambda x: x.gather(1, x.argsort(1)), [(3, 4)], [3, 4]),
    "a row added": (lambda x, y: x.index_add(0, torch.tensor([2]), y), [(6, 4), (1, 4)], [4]),
    "a row written": (lambda x, y: x.index_copy(0, torch.tensor([2]), y), [(6, 4), (1, 4)], [4]),
    "rows added by an index of data": (lambda x, y: x.index_add(0, torch.tensor([0, 2, 2]), y), [(6, 4), (3, 4)], [4]),
    "a row put twice": (lambda x, y: x.index_put((torch.tensor([0, 2]),), y), [(6, 4), (4,)], [4]),
    "the largest written back": (lambda x: torch.zeros_like(x).scatter(1, *x.topk(2, 1)[::-1]), [(3, 4)], [3, 4]),
    "rows by positions of the largest": (lambda x, w: w[x.topk(2, 1).indices], [(3, 4), (4, 5)], [3, 4, 5]),
    "rows by the position of the least": (lambda x, w: w.index_select(0, x.argmin(1)), [(3, 4), (4, 5)], [3, 4, 5]),
    "columns by positions": (lambda x, w: w[:, x.argmax(1)], [(3, 4), (5, 4)], [3, 4, 5]),
    "looked up by positions": (lambda x, w: F.embedding(x.topk(2, 1).indices, w), [(3, 4), (4, 5)], [3, 4, 5]),
    "bags of rows by positions": (lambda x, w: F.embedding_bag(x.topk(2, 1).indices, w), [(3, 4), (4, 5)], [4, 5]),
    "rows of its own order": (lambda x: x[x.argsort()], [(4,)], [4]),
    "rows of a longer table": (lambda x, w: w[x.argmax(1)], [(3, 4), (6, 5)], [5]),
    "rows by places shifted": (lambda x, w: w[x.argmax(1) + 1], [(3, 4), (6, 5)], [5]),
    "entries by positions twice": (lambda x, w: w[x.argmax(1), x.argmin(1)], [(3, 4), (4, 4)], []),
    "copied over zeros": (lambda x: torch.zeros(3, 4, dtype=torch.float64).copy_(x), [(3, 4)], [3, 4]),
    "one row for all": (lambda x: torch.zeros(3, 4, dtype=torch.float64).copy_(x), [(4,)], [4]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "masked": lambda h: h.masked_fill(h > 1, 0.0),
    "gathered over time": lambda h: h.gather(1, torch.zeros(2, 3, 12, dtype=torch.long)),
    "indexed by data": lambda h: h[:, torch.tensor([0, 2, 2])],
    "written in place": lambda h: torch.zeros_like(h).copy_(h).mul_(2).add_(h),
    "scattered over time": lambda h: torch.zeros(2, 9, 12).index_add(1, torch.arange(7), h),
    "the k largest kept, written back": lambda h: torch.zeros_like(h).scatter(-1, *h.topk(4, -1)[::-1]),
    "the k largest kept, by a mask": lambda h: h * torch.zeros_like(h).scatter_(-1, h.topk(4, -1).indices, 1.0),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


def test_packed_sequences_keep_what_comes_with_each_time() -> None:
    """The units of an embedding are read by a recurrent layer that leaves padding out, and so are that layer's own."""
    lengths = torch.tensor([7, 4])

    def forward(m, x):
        packed = pack_padded_sequence(m.embed(x), lengths, batch_first=True)
        return m.out(pad_packed_sequence(m.rnn(packed)[0], batch_first=True)[0].mean(1))

    net = Made(forward, embed=nn.Linear(5, 6), rnn=nn.GRU(6, 4, batch_first=True), out=nn.Linear(4, 2))
    assert [(group.name, group.n, group.status) for group in find_neuron_groups(net, X)] == [
        ("embed", 6, "verified"),
        ("rnn", 4, "verified"),
    ]


def test_one_position_written_out_in_the_code_is_a_slice() -> None:
    """As Falcon picks keys and values from its fused projection."""

    def attention(h):
        parts = h.unflatten(-1, (6, 2))
        query, key, value = parts[..., :-2, :], parts[..., [-2], :], parts[..., [-1], :]
        scores = (query.transpose(1, 2) @ key.transpose(1, 2).mT).softmax(-1)
        return (scores @ value.transpose(1, 2)).transpose(1, 2).flatten(-2)

    groups = find_neuron_groups(Between(attention, width=8), X)
    assert ("head", 4, "verified") in {(g.kind, g.n, g.status) for g in groups}


def decoded_by_rows(m, x):
    values, chosen = m.code(x).topk(4, -1)
    return (values.relu()[..., None] * m.table[chosen]).sum(-2)


def decoded_by_bags(m, x):
    values, chosen = m.code(x).flatten(0, 1).topk(4, -1)
    return F.embedding_bag(chosen, m.table, per_sample_weights=values.relu(), mode="sum")


def memory(m, x):
    scores, chosen = m.code(x).topk(3, -1)
    return (scores.softmax(-1)[..., None] * F.embedding(chosen, m.table)).sum(-2)


@pytest.mark.parametrize("forward", [decoded_by_rows, decoded_by_bags, memory])
def test_units_whose_positions_pick_rows_are_exchangeable_with_those_rows(forward) -> None:
    net = Made(forward, code=nn.Linear(5, 20), table=centres(20, 6))
    [group] = find_neuron_groups(net, X)
    assert (group.name, group.n, group.status) == ("code", 20, "verified")
    assert set(group.params) == {"code.weight", "code.bias", "table"}


def test_codes_of_a_codebook_are_exchangeable() -> None:
    """Vector quantization, straight through, with the loss of the codebook and the commitment."""

    def forward(m, x):
        z = m.encoder(x).flatten(0, 1)
        code = m.book[torch.cdist(z, m.book).argmin(-1)]
        decoded = m.decoder(z + (code - z).detach())
        return (decoded - x.flatten(0, 1)).square().mean() + (code - z.detach()).square().mean()

    net = Made(forward, encoder=nn.Linear(5, 8), book=centres(10, 8), decoder=nn.Linear(8, 5))
    groups = {(g.name, g.n, g.status) for g in find_neuron_groups(net, X)}
    assert groups == {("encoder", 8, "verified"), ("book", 10, "verified")}


WITH_POSITIONS = {
    "shifted": lambda m, x: m.table[(m.code(x).argmax(-1) + 1) % 20] * m.code(x).amax(-1, keepdim=True),
    "as numbers": lambda m, x: m.table[m.code(x).argmax(-1)] * m.code(x).argmax(-1, keepdim=True),
    "in another table": lambda m, x: m.table[:15][m.code(x).topk(2).indices.clamp(max=14)].sum(-2),
    "shown": lambda m, x: (m.table[m.code(x).argmax(-1)], m.code(x)),
}


@pytest.mark.parametrize("forward", WITH_POSITIONS.values(), ids=WITH_POSITIONS.keys())
def test_units_whose_positions_are_used_otherwise_are_no_group(forward) -> None:
    net = Made(forward, code=nn.Linear(5, 20), table=centres(20, 6))
    assert find_neuron_groups(net, X) == []
