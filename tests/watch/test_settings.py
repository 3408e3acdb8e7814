"""The parameters of a watch, and what leaves the machine of them."""

import json

import pytest

from lightning_topo import Distortion, Period, Persistence, Sharpness
from lightning_topo._watch.settings import WatchSettings
from lightning_topo.phases import PhaseRules


class Mine:
    name = "mine"
    secret = "hunter2"

    def measure(self, capture):
        return {}


WRONG = {
    "groups": ({"groups": "all"}, "groups"),
    "on_error": ({"on_error": "ignore"}, "on_error"),
    "log_groups": ({"log_groups": "best"}, "log_groups"),
    "no overhead": ({"max_overhead": 0.0}, "max_overhead"),
    "record": ({"max_record_mb": -1.0}, "max_record_mb"),
    "rules": ({"rules": 0.9}, "PhaseRules"),
    "two of a name": ({"probes": (Distortion(), Distortion(every_n_steps=2))}, "different names"),
    "a class": ({"probes": (Mine,)}, "the class Mine"),
}


@pytest.mark.parametrize(("options", "match"), WRONG.values(), ids=WRONG)
def test_wrong_parameters_are_refused_by_name(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        WatchSettings(**options)


def test_periods_are_the_probes_own_and_a_default_for_one_without():
    schedule = WatchSettings(probes=(Distortion(every_n_steps=3), Persistence(every_n_epochs=2), Mine())).schedule(100)
    assert schedule.periods["distortion"] == Period(3)
    assert schedule.periods["persistence"] == Period(2, "epoch")
    assert schedule.periods["mine"] == Period(25, adaptive=True)
    assert schedule.dense == {"distortion"}


def test_the_description_is_plain_and_has_nothing_of_a_user_s_own_probe():
    settings = WatchSettings(
        probes=(Sharpness(every_n_steps=5, loss_fn=lambda module, batch: 0), Mine()), rules=PhaseRules()
    )
    text = json.dumps(settings.described())
    assert "hunter2" not in text
    assert "lambda" not in text
    assert json.loads(text)["probes"]["mine"] == {"class": "Mine"}
    assert json.loads(text)["probes"]["sharpness"]["every_n_steps"] == 5
