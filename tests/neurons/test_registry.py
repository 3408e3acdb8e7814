"""Rules for operators of one's own."""

import pytest
import torch

from lightning_topo.neurons import _registry as registry
from lightning_topo.neurons import find_neuron_groups, register_rule
from tests.neurons.rules.models import Between, X


def test_an_operator_of_ones_own_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("topo_test::scale_rows", mutates_args=())
    def scale_rows(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * gain / x.norm(dim=-1, keepdim=True)

    scale_rows.register_autograd(
        lambda ctx, g: (g * ctx.saved_tensors[0], None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
    )

    def rule(trace, call) -> None:
        *batch, features = trace.axes(call["x"])
        [gain] = trace.axes(call["gain"])
        trace.unify(features, gain)
        trace.assign(call.out, [*batch, features])

    class Scaled(Between):
        def forward(self, x):
            return self.last(scale_rows(self.first(x), self.gain))

    model = Scaled(None)
    [group] = find_neuron_groups(model, X)
    assert (group.status, group.params) == ("incoming_only", ("first.weight", "first.bias"))

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    register_rule("topo_test::scale_rows", rule)
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status) == (12, "verified")
    assert "gain" in group.params


def test_a_name_without_a_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an operator as 'namespace::name', got 'relu'"):
        register_rule("relu", lambda trace, call: None)
