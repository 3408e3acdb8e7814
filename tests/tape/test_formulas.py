"""The plain formulas of fused kernels, against torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape.formulas import RECURRENT, attention, named_arguments, plain, recurrent_layer
from lightning_topo._tape.program import Call


@pytest.mark.parametrize("kind", [torch.nn.LSTMCell, torch.nn.GRUCell])
def test_the_formula_of_a_fused_cell_is_the_cell(kind) -> None:
    """The kernels themselves are a GPU's; what they compute is what the cell computes here."""
    torch.manual_seed(0)
    cell, x, hidden, state = kind(3, 5).double(), *(torch.randn(4, n).double() for n in (3, 5, 5))
    gates = {
        "input_gates": x @ cell.weight_ih.T,
        "hidden_gates": hidden @ cell.weight_hh.T,
        "input_bias": cell.bias_ih,
        "hidden_bias": cell.bias_hh,
        "hx": hidden,
        "cx": state,
    }
    lstm = kind is torch.nn.LSTMCell
    name = "aten::_thnn_fused_lstm_cell" if lstm else "aten::_thnn_fused_gru_cell"
    found = RECURRENT[name](Call(getattr(torch.ops.aten, name[6:]).default, (), {}, ()), gates)
    wanted = cell(x, (hidden, state)) if lstm else (cell(x, hidden),)
    for one, other in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, other)


def heads(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"scale": 0.3}, {"bias": "added"}, {"bias": "mask"}])
def test_attention_is_torchs(options: dict) -> None:
    q, k, v, added = heads((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3), (2, 1, 5, 7))
    bias = {"added": added, "mask": added > -0.5, None: None}[options.get("bias")]
    given = {key: value for key, value in options.items() if key != "bias"}
    causal = given.pop("causal", False)
    wanted = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, **given)
    torch.testing.assert_close(attention(q, k, v, bias, causal=causal, **given), wanted)


def test_fewer_key_heads_serve_several_query_heads_each() -> None:
    q, k, v = heads((2, 6, 5, 8), (2, 2, 5, 8), (2, 2, 5, 3))
    wanted = torch.cat([attention(q[:, 3 * i : 3 * i + 3], k[:, [i] * 3], v[:, [i] * 3]) for i in range(2)], dim=1)
    torch.testing.assert_close(attention(q, k, v), wanted)


def test_a_query_that_may_see_nothing_gets_nothing() -> None:
    q, k, v = heads((1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    out = attention(q, k, v, torch.tensor([[True, True, False], [False, False, False]]))
    assert torch.equal(out[0, 0, 1], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(out[..., :1, :], attention(q[..., :1, :], k[..., :2, :], v[..., :2, :]))


@pytest.mark.parametrize("kind", ["relu", "tanh", "lstm", "gru"])
@pytest.mark.parametrize("bias", [True, False])
def test_both_directions_of_a_recurrent_layer_are_torchs(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    options = {"bidirectional": True, "bias": bias, "dtype": torch.float64}
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 4, **options) if kind in ("lstm", "gru") else None
    layer = layer or nn.RNN(3, 4, nonlinearity=kind, **options)
    x, hidden, state = heads((6, 2, 3), (2, 2, 4), (2, 2, 4))
    wanted, last = layer(x, (hidden, state) if kind == "lstm" else hidden)
    last_hidden, last_state = last if kind == "lstm" else (last, [None, None])
    for i, end in enumerate(["", "_reverse"]):
        weights = [
            getattr(layer, f"{name}_l0{end}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if bias else 2]
        ]
        cell = state[i] if kind == "lstm" else None
        out, h, c = recurrent_layer(x, weights, hidden[i], cell, kind, reverse=i == 1)
        torch.testing.assert_close(out, wanted[..., 4 * i : 4 * i + 4])
        torch.testing.assert_close(h, last_hidden[i])
        torch.testing.assert_close(c, last_state[i])


def test_products_of_groups_of_rows_leave_rows_behind_the_last_group_empty() -> None:
    rows, matrices, ends = *heads((7, 4), (3, 4, 5)), torch.tensor([2, 2, 6], dtype=torch.int32)
    operator = torch.ops.aten._grouped_mm.default
    call = Call(operator, (), {}, (0,))
    out = plain(call, (rows, matrices), {"offs": ends})
    wanted = torch.cat([rows[:2] @ matrices[0], rows[2:6] @ matrices[2], torch.zeros(1, 5)])
    torch.testing.assert_close(out, wanted)
    # Of its gradient: one matrix a group, which for a group without rows is zero.
    gradient = plain(call, (rows.T, out), {"offs": ends})
    assert gradient.shape == (3, 4, 5)
    torch.testing.assert_close(gradient[2], rows[2:6].T @ out[2:6])
    assert not gradient[1].any()


def test_packed_sequences_are_refused_by_name() -> None:
    operator = torch.ops.aten.mkldnn_rnn_layer.default
    names = [argument.name for argument in operator._schema.arguments]
    args = [[3, 2] if name == "batch_sizes" else None for name in names]
    with pytest.raises(NotImplementedError, match="packed sequences"):
        plain(Call(operator, (), {}, (0,)), args, {})


def test_arguments_get_their_names_and_defaults() -> None:
    x = torch.ones(2)
    named = named_arguments(torch.ops.aten.add.Tensor, (x,), {"other": x})
    assert named.keys() == {"self", "other", "alpha"}
    assert named["alpha"] == 1


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"include_last_offset": True}, {"weighted": True}])
def test_bags_of_embeddings_are_torchs_also_empty_ones(mode: str, options: dict) -> None:
    if options.get("weighted") and mode != "sum":
        pytest.skip("torch weighs sums alone")
    weight, scales = heads((6, 4), (7,))
    indices, offsets = torch.tensor([0, 2, 5, 2, 2, 1, 4]), torch.tensor([0, 3, 3, 5, 7])
    given = {"weighted": None, **options}
    offsets = offsets if given.get("include_last_offset") else offsets[:-1]
    scales = scales if given.pop("weighted") else None
    wanted = F.embedding_bag(indices, weight, offsets, mode=mode, per_sample_weights=scales, **given)
    number = {"sum": 0, "mean": 1, "max": 2}[mode]
    args = (weight, indices, offsets, False, number, False, scales, *[given.get("include_last_offset", False)])
    call = Call(torch.ops.aten._embedding_bag.default, (), {}, (0, None, None, None))
    found = plain(call, args, {"padding_idx": given.get("padding_idx", -1)})[0]
    torch.testing.assert_close(found, wanted)
