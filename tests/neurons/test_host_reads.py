"""A step that reads its neurons into Python: the proof takes the values as constants, and its reason says so."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder
from lightning_topo.neurons import groups_from_tapes
from tests.tape.steps import batch, mlp


def split_by_a_count(out: Tensor, h: Tensor) -> Tensor:
    [n] = (h[:, 0] > 0).sum(0, keepdim=True).tolist()
    first, second = out.split([n, len(out) - n])
    return first.square().sum() + second.abs().sum()


def weighted_by_an_index(out: Tensor, h: Tensor) -> Tensor:
    [i] = h.sum(0).argmax(keepdim=True).tolist()
    return (out * (1 + i)).square().mean()


def listed_after_it_is_detached(out: Tensor, h: Tensor) -> Tensor:
    return (out * (1 + int(np.argmax(h.detach().tolist()[0])))).square().mean()


def by_numpy_and_back(out: Tensor, h: Tensor) -> Tensor:
    return (out * torch.from_numpy(h.detach().numpy()[:, :1].copy())).square().mean()


def by_numpy_in_the_same_memory(out: Tensor, h: Tensor) -> Tensor:
    return (out * torch.from_numpy(h.detach().numpy())[:, :1]).square().mean()


def by_an_array(out: Tensor, h: Tensor) -> Tensor:
    return (out * torch.as_tensor(np.asarray(h.detach())[:, :1] * 2)).square().mean()


def column_of_the_largest(out: Tensor, h: Tensor) -> Tensor:
    return out[:, int(h[:, :3].sum(0).argmax())].square().mean()


def divided_by_a_length(out: Tensor, h: Tensor) -> Tensor:
    return (out / (1 + len((h[:, 0] > 0).nonzero()))).square().mean()


def branched_by_a_number(out: Tensor, h: Tensor) -> Tensor:
    return (out * 3 if float(h[:, 0].detach().mean()) > -0.1 else out).square().mean()


def branched_by_any(out: Tensor, h: Tensor) -> Tensor:
    return (out * 3 if (h[:, 0] > 0.7).any() else out).square().mean()


def clamped(out: Tensor, h: Tensor) -> Tensor:
    return out.clamp(max=0.7 * h[0, 0].item()).square().mean()


READERS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], str], ...] = (
    (split_by_a_count, "perhaps aten::sum"),
    (weighted_by_an_index, "perhaps aten::argmax"),
    (listed_after_it_is_detached, "perhaps aten::detach"),
    (by_numpy_and_back, "numpy"),
    (by_numpy_in_the_same_memory, "numpy"),
    (by_an_array, "numpy"),
    (column_of_the_largest, "aten::_local_scalar_dense"),
    (divided_by_a_length, "aten::nonzero"),
    (branched_by_a_number, "aten::_local_scalar_dense"),
    (branched_by_any, "aten::_local_scalar_dense"),
    (clamped, "aten::_local_scalar_dense"),
)


@pytest.mark.parametrize(("reader", "named"), READERS)
def test_a_verdict_that_the_real_step_contradicts_names_what_was_read(
    reader: Callable[[Tensor, Tensor], Tensor], named: str
) -> None:
    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)

    def step(net: nn.Sequential) -> Tensor:
        h = net[1](net[0](x))
        return reader(net[2](h), h)

    recorder.begin(net)
    recorder.loss(step(net))
    [group] = [group for group in groups_from_tapes(recorder.end()).groups if group.n > 1]
    assert group.status == "verified"
    assert group.reason == f"values read by the host ({named}) are taken as constants"

    losses = {float(step(_permuted(net, torch.arange(8).roll(k))).detach()) for k in range(8)}
    assert max(losses) - min(losses) > 1e-3  # what was taken as a constant is none


def _permuted(net: nn.Sequential, order: Tensor) -> nn.Sequential:
    state = net.state_dict()
    state["0.weight"], state["0.bias"], state["2.weight"] = (
        state["0.weight"][order], state["0.bias"][order], state["2.weight"][:, order],
    )  # fmt: skip
    other = mlp(5, 8, 3)
    other.load_state_dict(state)
    return other


def test_a_group_that_was_not_read_has_no_word_of_it() -> None:
    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 7, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    h = net[:2](x)
    recorder.loss(net[2:](h * (1 + h.argmax(1)[0].item())).square().mean())
    first, second = groups_from_tapes(recorder.end()).groups
    assert ("argmax" in first.reason or "_local_scalar_dense" in first.reason, second.reason) == (True, "")
