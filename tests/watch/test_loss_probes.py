"""Which probes evaluate the training's loss, and what their first look is taken to cost."""

from unittest.mock import Mock

from lightning_topo import Distortion, Fate, Persistence, Sharpness
from lightning_topo._watch.loss_probes import STEPS_PER_TAPE, LossProbes
from lightning_topo._watch.schedule import Schedule
from lightning_topo.probes import StepEdge


class Mine:
    name = "mine"

    def measure(self, capture):
        return {}


def test_those_of_the_neurons_alone_are_none_and_a_users_own_is_one():
    assert not LossProbes.among([Distortion(), Persistence(), Fate()]).are_any
    found = LossProbes.among([Distortion(), Sharpness(), StepEdge(), Mine()])
    assert (found.of_samples, found.of_batches) == (("sharpness", "mine"), ("step_edge",))
    assert LossProbes.among([StepEdge()]).are_any


def test_what_looks_at_many_samples_is_expected_to_cost_as_much_as_its_tapes():
    schedule = Mock(spec=Schedule)
    LossProbes.among([Distortion(), Sharpness(), StepEdge()]).expect_costs(schedule, 3)
    schedule.expect.assert_called_once_with("sharpness", 4 * STEPS_PER_TAPE)
