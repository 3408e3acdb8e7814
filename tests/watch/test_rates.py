"""The learning rates that were used: none is lost, and the changes alone tell all of them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._watch.rates import Rates, learning_rate, optimizer_facts
from tests.watch.driving import two_layers


@given(st.lists(st.sampled_from([0.1, 0.05, 0.0]) | st.none(), max_size=30), st.sets(st.integers(1, 30)))
def test_from_the_changes_every_rate_can_be_had_back_whenever_they_were_taken(rates, taken_after):
    kept, changes, notes = {}, {}, Rates()
    for step, rate in enumerate(rates, start=1):
        notes.note(step, rate)
        notes.note(step, 7.0 if rate is not None else None)  # a second update of the step does not count
        if step in taken_after:
            some, changed = notes.take()
            kept, changes = kept | some, changes | changed
    some, changed = notes.take()
    kept, changes = kept | some, changes | changed
    wanted = {step: rate for step, rate in enumerate(rates, start=1) if rate is not None}
    assert kept == wanted
    last, found = None, {}
    for step in wanted:
        last = changes.get(step, last)
        found[step] = last
    assert found == wanted
    told = list(changes.values())
    assert all(a != b for a, b in pairwise(told))
    assert notes.take() == ({}, {})
    assert notes.reported == last


def test_after_a_resume_the_rate_that_goes_on_is_no_change():
    rates = Rates()
    rates.reported = 0.1
    rates.note(5, 0.1)
    rates.note(6, 0.2)
    assert rates.take() == ({5: 0.1, 6: 0.2}, {6: 0.2})


@pytest.mark.parametrize(
    ("groups", "rate"),
    [
        ([{"lr": 0.1}, {"lr": 0.2}], 0.1),
        ([{"lr": torch.tensor(0.25)}], 0.25),
        ([{"lr": torch.tensor([0.1, 0.2])}], None),
        ([{"lr": torch.empty((), device="meta")}], None),  # on a device, reading it would wait
        ([{"lr": "auto"}], None),
        ([{}], None),
        ([], None),
        (None, None),
    ],
)
def test_the_rate_is_that_of_the_first_group_where_it_can_be_read_at_once(groups, rate):
    optimizer = type("Rule", (), {} if groups is None else {"param_groups": groups})()
    assert learning_rate(optimizer) == rate


def test_the_facts_name_every_optimizer_and_the_options_that_are_set():
    net = two_layers()
    sgd = torch.optim.SGD(net[0].parameters(), lr=0.5, momentum=0.9)
    adam = torch.optim.AdamW(net[2].parameters(), lr=1e-3, weight_decay=0.1)
    facts = optimizer_facts(iter([sgd, adam]))
    assert facts["optimizer"] == "SGD, AdamW"
    assert facts["learning_rate"] == "0.5, 0.001"
    assert facts["optimizer_options"] == "momentum=0.9, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.1"
    assert facts["n_learning_rates"] == 2
    assert set(optimizer_facts([]).values()) == {"", 0}
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in (0.1, 0.1, 0.3)]
    assert optimizer_facts([torch.optim.SGD(groups)])["n_learning_rates"] == 2
