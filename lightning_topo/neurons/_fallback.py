"""Fallback for models that cannot be traced: the incoming weights of single layers."""

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from lightning_topo._tape.names import clean_name
from lightning_topo.neurons._group import NeuronGroup, ParamSlice

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def incoming_groups(model: nn.Module, reason: str) -> list[NeuronGroup]:
    """A group of incoming weights and biases per layer, without the last, which is taken for the output."""
    return [group.with_status("incoming_only", reason) for group in list(_layers(model))[:-1]]


def _layers(model: nn.Module) -> Iterator[NeuronGroup]:
    names = {id(p): clean_name(name) for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        lies_across = _lies_across(module)
        if not (isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or lies_across):
            continue
        layer = cast(Any, module)
        if id(layer.weight) not in names:
            continue
        grouped = isinstance(module, _TRANSPOSED) and module.groups > 1
        if grouped:
            continue
        weight, axis = layer.weight, 1 if isinstance(module, _TRANSPOSED) or lies_across else 0
        slices = [ParamSlice(names[id(weight)], (), (axis,), weight.requires_grad)]
        if layer.bias is not None and id(layer.bias) in names:
            bias = names[id(layer.bias)]
            slices.append(ParamSlice(bias, (), (0,), layer.bias.requires_grad, "elementwise"))
        kind = "channel" if isinstance(module, _CONVOLUTIONS) else "unit"
        name = clean_name(f"{path}.").removesuffix(".") or "model"
        yield NeuronGroup(name, kind, weight.shape[axis], (), tuple(slices))


def _lies_across(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`: a linear layer whose weight has its outputs along the second axis."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
