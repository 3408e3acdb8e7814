"""Of an optimizer that chooses its own steps no learning rate is recommended, whatever was measured."""

from pathlib import Path

import pytest
import torch

from lightning_topo._watch.rates import optimizer_facts
from lightning_topo.outputs.page._advice import recommendation
from lightning_topo.outputs.page._own_steps import own_steps
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.advised import loss, rate, ratio

WEIGHTS = [torch.nn.Parameter(torch.ones(2))]
RULES = {
    "LBFGS": torch.optim.LBFGS(WEIGHTS, line_search_fn="strong_wolfe"),
    "Rprop": torch.optim.Rprop(WEIGHTS),
}
FALLEN = [loss(k, 1.0 / k) for k in range(1, 100)]


def record(facts, *measured):
    return RunRecord(Path("run"), "id", (rate(1, 0.1), *measured), about={"training": facts})


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("largest", [0.3, 3.0])
def test_no_learning_rate_is_recommended(name, largest):
    found = recommendation(record(optimizer_facts([RULES[name]]), *FALLEN, *(ratio(k, largest) for k in (1, 40, 80))))
    assert found.startswith(f"Keep {name}" if largest < 1.0 else f"Let {name} take smaller steps")
    assert "learning rate" not in found


def test_the_same_measurements_of_other_optimizers_lower_the_rate():
    for optimizer in (torch.optim.LBFGS(WEIGHTS), torch.optim.SGD(WEIGHTS, lr=0.1)):
        facts = optimizer_facts([optimizer])
        assert own_steps(facts) == ""
        assert recommendation(record(facts, *FALLEN, *(ratio(k, 3.0) for k in (1, 40, 80)))).startswith(
            "Lower the lear"
        )


def test_one_of_several_is_enough():
    facts = optimizer_facts([torch.optim.Adam(WEIGHTS), RULES["Rprop"]])
    assert own_steps(facts) == "Rprop"
