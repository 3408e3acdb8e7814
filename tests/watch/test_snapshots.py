"""The clouds of the present step and of the one before, of the groups that an update concerns."""

import pytest
import torch

from lightning_topo import Distortion
from lightning_topo._watch.reference_clouds import ReferenceClouds
from lightning_topo._watch.snapshots import Snapshots, kept_shards
from lightning_topo.probes import Capture, StepSharpness
from tests.watch.driving import GROUPS, steps_of, training_of, two_layers


class Mine:
    name, by_group = "mine", True

    def measure(self, capture):
        return {}


class WithParameters(Mine):
    needs_parameters_before = True


class Restarts:
    """Remembers from which steps totals count."""

    def __init__(self):
        self.told = {}

    def totals_from(self, step, groups):
        self.told |= dict.fromkeys(groups, step)


class Shot:
    """A module, its optimizers and its snapshots."""

    def __init__(self, *parts):
        self.model = two_layers()
        self.optimizers = [torch.optim.SGD(self.model[k].parameters(), lr=0.1) for k in parts]
        self.steps = steps_of(self.model)
        training = training_of(self.model, self.optimizers)
        self.snapshots = Snapshots(training, self.steps, GROUPS, lambda loss_fn: None)

    def update(self, k):
        for p in self.model.parameters():
            p.grad = torch.ones_like(p)
        self.optimizers[k].step()

    def cloud(self, group):
        named = {name: p.detach() for name, p in self.model.named_parameters()}
        return group.gather(named)


@pytest.fixture
def shot(request):
    made = Shot(*getattr(request, "param", (0, 2, 4)))
    yield made
    made.steps.release()


def test_now_is_where_the_update_led_and_before_is_where_it_began(shot):
    began = {group.name: shot.cloud(group) for group in GROUPS}
    assert shot.snapshots.before(1) is None
    for k in range(3):
        shot.update(k)
    now, before = shot.snapshots.now(), shot.snapshots.before(1)
    for group in GROUPS:
        assert torch.equal(before[group.name], began[group.name])
        assert torch.equal(now[group.name], shot.cloud(group))
        assert not torch.equal(now[group.name], before[group.name])
    shot.steps.advance()
    assert shot.snapshots.before(2) is None


def test_a_group_is_touched_by_the_optimizers_that_own_a_part_of_it(shot):
    assert shot.snapshots.touched() == ()
    shot.update(0)
    assert [group.name for group in shot.snapshots.touched()] == ["0"]
    shot.update(1)  # the weights between both layers
    assert [group.name for group in shot.snapshots.touched()] == ["0", "2"]


@pytest.mark.parametrize("shot", [(4,)], indirect=True)
def test_a_group_in_which_nothing_is_trained_has_no_cloud(shot):
    shot.update(0)
    assert [group.name for group in shot.snapshots.active()] == ["2"]
    assert list(shot.snapshots.now()) == ["2"]
    # Of the units of layer 2 only the outgoing weights are trained; what stands still keeps them apart.
    whole = dict(shot.model.named_parameters())
    assert torch.equal(shot.snapshots.now()["2"], GROUPS[1].gather(whole))
    assert torch.equal(shot.snapshots.now().trained()["2"], shot.model[4].weight.detach().T)
    assert shot.snapshots.now().trained_columns("2").tolist() == [False] * 6 + [True] * 2


def test_a_capture_holds_the_groups_asked_for_and_both_ends_of_the_step(shot):
    for k in range(3):
        shot.update(k)
    now = shot.snapshots.now()
    capture = shot.snapshots.capture(Mine(), 1, now, None, [GROUPS[1]])
    assert isinstance(capture, Capture)
    assert (capture.step, capture.epoch, capture.groups) == (1, 0, (GROUPS[1],))
    assert capture.before is not None
    assert torch.equal(capture.before["2"], shot.snapshots.before(1)["2"])
    assert capture.is_first_step
    assert (capture.parameters_before, capture.gradient_scales, capture.reference) == (None, None, {})
    assert list(capture.optimizers) == shot.optimizers

    whole = shot.snapshots.capture(WithParameters(), 1, now, None)
    assert whole.groups == GROUPS
    assert whole.parameters_before is not None
    assert whole.parameters_before.keys() == dict(shot.model.named_parameters()).keys()


def test_totals_count_anew_where_parameters_join_and_go_on_elsewhere(shot):
    shot.snapshots.reference = ReferenceClouds()
    for k in range(3):
        shot.update(k)
    first = {group.name: shot.snapshots.before(1)[group.name].clone() for group in GROUPS}
    assert shot.snapshots.refer_from(1, {"0.bias"}) == ["0"]
    assert list(shot.snapshots.reference) == ["0"]
    assert torch.equal(shot.snapshots.reference["0"], first["0"])
    assert shot.snapshots.refer_from(1, {"2.weight"}) == ["0", "2"]
    assert shot.snapshots.refer_from(1, {"nowhere"}) == []
    # A new look at the same groups keeps the beginning; a group of another shape begins now.
    earlier = Shot(0).snapshots
    earlier.reference, earlier.store = ReferenceClouds(), Restarts()
    earlier.reference.hold("0", first["0"])
    earlier.reference.hold("2", torch.zeros(4, 1))
    shot.snapshots.take_over(earlier, 5)
    assert earlier.store.told == {"2": 5}
    assert torch.equal(shot.snapshots.reference["0"], first["0"])
    assert torch.equal(shot.snapshots.reference["2"], shot.cloud(GROUPS[1]))


def test_members_are_all_parameters_with_a_part_and_whole_parameters_need_no_copies(shot):
    assert set(GROUPS[0].parameter_names) == {"0.weight", "0.bias", "2.weight"}
    assert kept_shards(training_of(shot.model)) is None
    shot.snapshots.before_step(1, [Distortion()])
    shot.snapshots.after_step(1, shot.snapshots.now())
    assert shot.snapshots.before(2) is None


@pytest.mark.parametrize("sharding", ["fsdp2", "tensor_parallel", "fsdp1", "zero3"])
def test_shards_before_a_step_are_copied_for_probes_that_need_them(shot, sharding):
    shot.snapshots.sharding = sharding
    weights = {name: p.detach().clone() for name, p in shot.model.named_parameters()}
    shot.snapshots.before_step(1, [StepSharpness()])
    assert shot.snapshots._parameters_before(1) is not None
    shot.snapshots.before_step(1, [])
    shot.snapshots.before_step(1, [StepSharpness(loss_fn=lambda module, batch: None)])
    shot.update(0)
    kept = shot.snapshots._parameters_before(1)
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    assert shot.snapshots._parameters_before(2) is None
    shot.snapshots.before_step(2, [])
    assert shot.snapshots._parameters_before(1) is None
