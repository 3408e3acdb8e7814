"""Fused kernels by their plain formulas: in any precision, differentiable twice, open to coupling rules."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_topo._tape.attention_dropout import kept_weights
from lightning_topo._tape.program import Call


def attention(
    query: Float[Tensor, "... t d"],
    key: Float[Tensor, "... s d"],
    value: Float[Tensor, "... s e"],
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    kept: Bool[Tensor, "... t s"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "... t e"]:
    """softmax(scale q k^T + bias) v, where fewer key heads serve several query heads each.

    Of the softmax those weights that are not `kept` are dropped, and the others divided by 1 - `dropout`.
    """
    if key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if causal:
        rows, columns = (torch.arange(scores.shape[i], device=scores.device) for i in (-2, -1))
        scores = scores.masked_fill(columns > rows[:, None], -math.inf)
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    weights = scores.softmax(-1)
    weights = weights.nan_to_num(0.0) if bias is not None else weights
    if kept is not None:
        weights = weights * kept * (1 / (1 - dropout) if dropout < 1 else 0.0)
    return weights @ value


def _attention(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    bias = args.get("attn_mask") if args.get("attn_bias") is None else args.get("attn_bias")
    rows = args.get("philox_rows")
    out = attention(
        args["query"],
        args["key"],
        args["value"],
        bias,
        causal=bool(args.get("is_causal")),
        scale=args.get("scale"),
        kept=None if rows is None else kept_weights(call.name, args, rows),
        dropout=float(args["dropout_p"]),
    )
    return (out, *[None] * (len(call.outputs) - 1))


_CELLS = {0: "relu", 1: "tanh", 2: "lstm", 3: "gru"}


def recurrent_layer(
    x: Float[Tensor, "t b i"],
    weights: Sequence[Tensor],
    hidden: Float[Tensor, "b n"],
    cell: Float[Tensor, "b n"] | None,
    kind: str,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One direction of one layer: outputs of all times, last hidden state, last cell state.

    Where tensors have no values, all times but the first are alike: one stands for them.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases if biases else (None, None)
    inputs = torch.nn.functional.linear(x, w_ih, b_ih)
    outputs = []
    steps = list(reversed(inputs.unbind(0)) if reverse else inputs.unbind(0))
    for step in steps[:2] if x.is_meta else steps:
        recurrent = torch.nn.functional.linear(hidden, w_hh, b_hh)
        if kind == "lstm":
            assert cell is not None
            hidden, cell = _lstm(step + recurrent, cell)
        elif kind == "gru":
            hidden = _gru(step, recurrent, hidden)
        else:
            hidden = (step + recurrent).relu() if kind == "relu" else (step + recurrent).tanh()
        outputs.append(hidden)
    outputs += outputs[-1:] * (len(steps) - len(outputs))
    return torch.stack(outputs[::-1] if reverse else outputs), hidden, cell


def _lstm(gates: Float[Tensor, "b gates"], cell: Float[Tensor, "b n"]) -> tuple[Tensor, Tensor]:
    """The hidden and the cell state after one time."""
    i, f, g, o = gates.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(step: Float[Tensor, "b gates"], recurrent: Float[Tensor, "b gates"], hidden: Float[Tensor, "b n"]) -> Tensor:
    """The hidden state after one time."""
    (r, z, n), (r_h, z_h, n_h) = step.chunk(3, -1), recurrent.chunk(3, -1)
    update = (z + z_h).sigmoid()
    return (1 - update) * (n + (r + r_h).sigmoid() * n_h).tanh() + update * hidden


def _lstm_cell(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*_lstm(torch.add(*_gates(args)), args["cx"]), None)


def _gru_cell(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    return _gru(*_gates(args), args["hx"]), None


def _gates(args: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What comes from the input, and from the hidden state."""
    step, recurrent = args["input_gates"], args["hidden_gates"]
    if args["input_bias"] is not None:
        step, recurrent = step + args["input_bias"], recurrent + args["hidden_bias"]
    return step, recurrent


def _mkldnn_rnn(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    """One layer in one direction, time first."""
    if args["batch_sizes"]:
        raise NotImplementedError("packed sequences in a fused recurrent kernel")
    kind = _CELLS[args["mode"]]
    weights = [args[f"weight{i}"] for i in range(4 if args["has_biases"] else 2)]
    x = args["input"]
    shape = (*x.shape[1:2], args["hidden_size"])
    out, hidden, cell = recurrent_layer(
        x,
        weights,
        args["hx_"].reshape(shape),
        args["cx_"].reshape(shape) if kind == "lstm" else None,
        kind,
        reverse=args["reverse"],
    )
    return out, hidden.view_as(args["hx_"]), args["cx_"] if cell is None else cell.view_as(args["cx_"]), None


def _cudnn_rnn(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    """All layers and directions."""
    if args["batch_sizes"] or args["proj_size"]:
        raise NotImplementedError("packed sequences or projections in a fused recurrent kernel")
    kind = _CELLS[args["mode"]]
    x = args["input"].transpose(0, 1) if args["batch_first"] else args["input"]
    directions = 2 if args["bidirectional"] else 1
    per_layer = args["weight_stride0"]
    hiddens, cells = [], []
    for layer in range(args["num_layers"]):
        outs = []
        for direction in range(directions):
            index = layer * directions + direction
            flat = args["weight"][index * per_layer : (index + 1) * per_layer]
            weights = _in_shape(flat, x.shape[-1], args["hidden_size"])
            cell = args["cx"][index] if kind == "lstm" else None
            out, hidden, cell = recurrent_layer(x, weights, args["hx"][index], cell, kind, reverse=direction == 1)
            outs.append(out)
            hiddens.append(hidden)
            cells += [] if cell is None else [cell]
        x = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
    out = x.transpose(0, 1) if args["batch_first"] else x
    return out, torch.stack(hiddens), torch.stack(cells) if cells else None, None, None


def _in_shape(weights: Sequence[Tensor], n_inputs: int, n_hidden: int) -> list[Tensor]:
    """The matrices and biases of one direction of one layer: where autocast has cast them, they are one column each."""
    shapes = ((-1, n_inputs), (-1, n_hidden), (-1,), (-1,))
    found = zip(weights, shapes, strict=False)
    return [w if w.shape[1:] == shape[1:] and w.dim() == len(shape) else w.reshape(shape) for w, shape in found]


def _grouped_mm(call: Call, args: Mapping[str, Any]) -> Tensor:
    """One product per group of rows (or, for gradients, of the summed axis), as the kernel defines it."""
    left, right, offs = args["self"], args["mat2"], args.get("offs")
    if offs is None:
        return left @ right
    ends = offs.tolist()
    spans = list(zip([0, *ends], ends, strict=False))
    if left.dim() == right.dim() == 2:
        return torch.stack([left[:, start:stop] @ right[start:stop] for start, stop in spans])
    if left.dim() == 2:
        products = [left[start:stop] @ matrix for (start, stop), matrix in zip(spans, right, strict=True)]
        return torch.cat([*products, left.new_zeros(len(left) - ends[-1], right.shape[-1])])
    products = [matrix @ right[:, start:stop] for (start, stop), matrix in zip(spans, left, strict=True)]
    return torch.cat([*products, left.new_zeros(left.shape[1], right.shape[-1] - ends[-1])], dim=1)


def _embedding_bag(call: Call, args: Mapping[str, Any]) -> tuple[Any, ...]:
    """The sum or mean of each bag's rows, each by its weight; by the kernel where the gradient is no sum of these."""
    weight, indices, offsets = args["weight"], args["indices"], args["offsets"]
    if args["mode"] == _BAG_MAXIMUM or args["scale_grad_by_freq"]:
        return call.operator(**{**args, "sparse": False})
    n_bags = len(offsets) - bool(args["include_last_offset"])
    places = torch.arange(len(indices), device=indices.device)
    bag_of = torch.searchsorted(offsets[:n_bags].to(places.dtype), places, right=True) - 1
    counted = indices != args["padding_idx"]
    rows = weight[indices] * counted[:, None]
    if (scales := args["per_sample_weights"]) is not None:
        rows = rows * scales[:, None]
    sums = rows.new_zeros(n_bags, weight.shape[1]).index_add(0, bag_of, rows)
    if args["mode"] == _BAG_MEAN:
        sizes = rows.new_zeros(n_bags).index_add(0, bag_of, counted.to(rows.dtype))
        sums = sums / sizes.clamp(min=1)[:, None]
    return (sums, *[None] * (len(call.outputs) - 1))


_BAG_MEAN, _BAG_MAXIMUM = 1, 2  # torch's numbers of the modes; 0 is the sum

Formula = Callable[[Call, Mapping[str, Any]], Any]

_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
RECURRENT: Mapping[str, Formula] = {
    "aten::mkldnn_rnn_layer": _mkldnn_rnn,
    "aten::_cudnn_rnn": _cudnn_rnn,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::_thnn_fused_gru_cell": _gru_cell,
}
"""Kernels that hide layers, for which there is no coupling rule."""
FORMULAS: Mapping[str, Formula] = {
    **{f"aten::{name}": _attention for name in _ATTENTION},
    **RECURRENT,
    "aten::_grouped_mm": _grouped_mm,
    "aten::_embedding_bag": _embedding_bag,
}


def named_arguments(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the schema, defaults filled in."""
    named = {}
    for i, declared in enumerate(operator._schema.arguments):
        if i < len(args):
            named[declared.name] = args[i]
        elif declared.name in kwargs:
            named[declared.name] = kwargs[declared.name]
        elif declared.has_default_value():
            named[declared.name] = declared.default_value
    return named


def plain(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], philox_rows: Tensor | None = None) -> Any:
    """The result of a fused kernel by its formula; outputs that only its backward pass reads are None.

    Attention drops what the kernel has dropped where its `philox_rows` are given, and else nothing.
    """
    named = named_arguments(call.operator, args, kwargs)
    return FORMULAS[call.name](call, named | {"philox_rows": philox_rows} if philox_rows is not None else named)
