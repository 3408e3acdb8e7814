"""What may leave the machine: of settings plain values alone, of the run folder the record's own files."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_topo import Distortion, Period, Persistence, Sharpness
from lightning_topo.outputs._leaving import plain, probe_facts, settings_facts

SECRET = "sk-secret"


def loss_with(module, batch, key):
    return module(batch)


@dataclass
class Mine:
    """A user's own probe, as a dataclass."""

    token: str = SECRET
    name: str = "mine"
    period: Period = field(default_factory=lambda: Period(5))


def test_of_our_probes_class_and_plain_fields_of_a_users_name_and_period():
    ours = Sharpness(every_n_steps=3, loss_fn=functools.partial(loss_with, key=SECRET))
    probes = [ours, Distortion(), Persistence(max_dim=0), Mine()]
    facts = settings_facts(probes=probes, log_groups=["enc*"], max_overhead=0.02, seed=3)
    text = json.dumps(facts)
    assert SECRET not in text
    assert "object at" not in text
    assert "functools" not in text
    assert [probe["name"] for probe in facts["probes"]] == ["sharpness", "distortion", "persistence", "mine"]
    assert facts["probes"][0]["every_n_steps"] == 3
    assert "loss_fn" not in facts["probes"][0]
    assert facts["probes"][2]["max_dim"] == 0
    assert facts["probes"][3] == {"name": "mine", "every": 5, "unit": "step"}
    assert facts["log_groups"] == ["enc*"]


def test_a_subclass_of_ours_is_a_users_own():
    @dataclass(frozen=True)
    class Child(Distortion):
        token: str = SECRET

    assert SECRET not in json.dumps(probe_facts(Child()))


def test_values_are_plain_or_nothing():
    values = {
        "lr": 0.1,
        "betas": (0.9, 0.999),
        "fused": None,
        "amsgrad": False,
        "weights": torch.ones(3),
        "path": Path("/home/someone/data"),
        "text_path": "/home/someone/data",
        "windows": "C:\\Users\\someone",
        "home": f"data={Path.home()}/x",
        "tilde": "~/data",
        "function": print,
        "inner": {"object": object(), "n": 3},
        "name": "resnet50",
    }
    assert plain(values) == {
        "lr": 0.1,
        "betas": [0.9, 0.999],
        "fused": None,
        "amsgrad": False,
        "weights": None,
        "path": None,
        "text_path": None,
        "windows": None,
        "home": None,
        "tilde": None,
        "function": None,
        "inner": {"object": None, "n": 3},
        "name": "resnet50",
    }
    assert len(plain("x" * 5000)) == 200


def test_a_path_into_the_home_is_told_from_a_name_with_a_slash(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert plain("data in /home/someone/data") is None
    assert plain("team/model") == "team/model"
    monkeypatch.setenv("HOME", "/")  # of a user without a home
    assert plain("team/model") == "team/model"
