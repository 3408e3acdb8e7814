"""Tensors that a module holds as plain attributes: equal entries put no condition on their axis."""

import copy
from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Fate, TopologyMonitor
from lightning_topo._tape import StepRecorder, accepted
from lightning_topo._tape.held import held_storages
from lightning_topo.neurons import find_neuron_groups, groups_from_tapes
from tests.callbacks.training import fit

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """Units that something is added to."""

    def __init__(self, shift: Callable[["Shifted"], Tensor], **held: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.shift = nn.Linear(5, 12), nn.Linear(12, 3), shift
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.shift(self)).tanh())


def found(model: nn.Module) -> list[tuple[int, str]]:
    """The groups of a model; a permutation of each in the model itself must not change its output."""
    groups = find_neuron_groups(model, X)
    for group in groups:
        moved = copy.deepcopy(model)
        permuted = group.permute(dict(model.named_parameters()), torch.arange(group.n).roll(1))
        moved.load_state_dict(permuted)
        torch.testing.assert_close(moved(X), model(X))
        assert set(group.params) <= set(permuted)
    return [(group.n, group.status) for group in groups]


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_entries_couple_nothing(value: float) -> None:
    assert found(Shifted(lambda m: m.c, c=torch.full((12,), value))) == [(12, "verified")]


@pytest.mark.parametrize(
    "held", [{"c": [torch.ones(12)]}, {"c": (None, torch.ones(12))}, {"c": {"a": torch.ones(12)}}], ids=str
)
def test_constants_in_a_list_are_held_too(held: dict[str, object]) -> None:
    def shift(m: nn.Module) -> Tensor:
        return (list(m.c.values()) if isinstance(m.c, dict) else m.c)[-1]

    assert found(Shifted(shift, **held)) == [(12, "verified")]


def test_one_entry_that_differs_fixes_them_all() -> None:
    shift = torch.ones(12)
    shift[7] = 0.0
    assert found(Shifted(lambda m: m.c, c=shift)) == []


def test_entries_are_compared_along_each_axis() -> None:
    alike, other = torch.arange(4.0)[:, None].expand(4, 12).clone(), torch.arange(12.0).expand(4, 12).clone()
    assert found(Shifted(lambda m: m.c, c=alike)) == [(12, "verified")]
    assert found(Shifted(lambda m: m.c, c=other)) == []
    assert found(Shifted(lambda m: m.c[:, :12] * m.c[0, 12], c=torch.ones(4, 13))) == [(12, "verified")]


def test_a_fixed_projection_keeps_its_units_and_one_of_equal_rows_does_not() -> None:
    """Random rows cannot change places with the units that they read; equal ones need not."""

    class Projected(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).tanh() @ self.c)

    rows = torch.randn(12, generator=torch.Generator().manual_seed(1))
    assert found(Projected(torch.zeros_like, c=torch.eye(12) + rows)) == []
    assert found(Projected(torch.zeros_like, c=rows.expand(12, 12).clone())) == [(12, "verified")]


def test_a_state_of_zeros_that_a_recurrent_loop_begins_with() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.read, self.again, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
            self.begin = torch.zeros(12)

        def forward(self, x: Tensor) -> Tensor:
            state = self.begin.expand(4, -1)
            for _ in range(3):
                state = torch.tanh(self.read(x) + self.again(state))
            return self.last(state)

    assert found(Loop()) == [(12, "verified")]


class Remembering(nn.Module):
    """Keeps something of a step as an attribute for the next one."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.keep = nn.Linear(5, 12), nn.Linear(12, 3), keep
        self.memory = torch.zeros(12)

    def forward(self, x: Tensor) -> Tensor:
        out = self.last((self.first(x) + self.memory).tanh())
        self.keep(self, x)
        return out + self.memory.mean()


@pytest.mark.parametrize(
    "keep",
    [
        lambda m, x: setattr(m, "memory", torch.arange(12.0)),
        lambda m, x: m.memory.copy_(torch.arange(12.0)),
        lambda m, x: setattr(m, "memory", m.memory.clone()),
    ],
    ids=["replaced", "written", "replaced by its like"],
)
def test_what_a_step_replaces_or_writes_is_data(keep: Callable[[nn.Module, Tensor], object]) -> None:
    """At the next step its entries are told apart."""
    model, recorder = Remembering(keep), StepRecorder()
    recorder.begin(model, held=held_storages(model))
    recorder.loss(model(X).square().mean())
    groups = groups_from_tapes([accepted(tape) for tape in recorder.end()]).groups
    assert [group for group in groups if group.status == "verified"] == []


def test_what_is_kept_unchanged_is_held() -> None:
    model, recorder = Remembering(lambda m, x: None), StepRecorder()
    recorder.begin(model, held=held_storages(model))
    recorder.loss(model(X).square().mean())
    [tape] = recorder.end()
    assert [tuple(tape.constants[slot].shape) for slot in tape.held] == [(12,)]
    assert [group.status for group in groups_from_tapes([accepted(tape)]).groups] == ["verified"]


def test_data_that_the_step_puts_into_an_attribute_stay_data() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.first = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.batch = x
            return self.first(self.batch + self.place)

    model = Placed()
    assert find_neuron_groups(model, torch.zeros(4, 5)) == []
    model(torch.zeros(4, 5))
    assert find_neuron_groups(model, torch.zeros(4, 5)) == []


class Masked(nn.Module):
    """Keeps the mask that comes with its data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.mask = mask
        return self.last(self.first(x).tanh() * self.mask)


@pytest.mark.parametrize("as_keywords", [False, True])
def test_data_that_the_model_holds_from_before_stay_data(as_keywords: bool) -> None:
    model, mask = Masked(), torch.ones(4, 12)
    data = {"x": X, "mask": mask} if as_keywords else (X, mask)
    for _ in range(2):  # the second time it holds this very mask
        assert find_neuron_groups(model, data) == []
        model(X, mask)


def test_example_inputs_of_the_model_are_data() -> None:
    model = Masked()
    model.example_input_array = (X, torch.ones(4, 12))
    assert find_neuron_groups(model) == []


def test_of_a_run_of_one_s_own_nothing_is_known_to_be_constant() -> None:
    """Its data may be what the model holds."""
    assert find_neuron_groups(Shifted(lambda m: m.c, c=torch.ones(12)), run=lambda m: m(X)) == []


class Batches(L.LightningModule):
    """Puts a part of the batch into an attribute before the step."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies, self.net = copies, Masked()

    def on_after_batch_transfer(self, batch: list[Tensor], index: int) -> list[Tensor]:
        self.mask = batch[1].clone() if self.copies else batch[1]
        return batch

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self.net.last(self.net.first(batch[0]).tanh() * self.mask)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("copies", [False, True])
def test_a_batch_that_is_put_into_an_attribute_is_no_constant(tmp_path, copies: bool) -> None:
    """Of the first one all entries are equal, of later ones they are not."""
    masks = torch.ones(32, 12)
    masks[16:] = (torch.rand(16, 12, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    data = DataLoader(TensorDataset(torch.randn(32, 5), masks), batch_size=8)
    monitor = TopologyMonitor([Fate(every_n_steps=2)], report=False, verbose=False)
    fit(Batches(copies=copies), [monitor], root=tmp_path, data=data, max_epochs=1)
    assert [group.status for group in monitor.groups if group.status == "verified"] == []


def test_what_a_proof_takes_for_constant_is_named() -> None:
    """The module may put other numbers there later, of which some neurons' differ."""
    [group] = find_neuron_groups(Shifted(lambda m: m.c, c=torch.zeros(12)), X)
    assert group.reason == "an attribute of a module with equal entries (shape (12,)) is taken as constant"
    [group] = find_neuron_groups(Shifted(lambda m: torch.zeros(()), c=torch.zeros(12)), X)  # nothing reads it
    assert group.reason == ""
