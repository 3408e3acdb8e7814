"""A chart without values says why there are none."""

from lightning_topo.outputs.page._silence import SHOWN, silence
from lightning_topo.phases import EventName, TopologyEvent

AUTO = {"settings": {"max_overhead": 0.02, "probes": {"sharpness": {"class": "Sharpness", "every_n_steps": "auto"}}}}


def test_one_that_waits_for_its_share_of_the_time_says_so_and_how_to_have_it_now():
    said = silence(AUTO, (), set())["sharpness"]
    assert "2% of the training's time" in said
    assert "Sharpness(every_n_steps=20)" in said


def test_one_that_is_off_says_how_to_switch_it_on():
    assert silence(AUTO, (), set())["fate"] == "The Fate probe is off: probes=[..., Fate()] switches it on."


def test_one_that_failed_points_to_the_event():
    failed = TopologyEvent(EventName.PROBE_FAILED, 3, 0, message="sharpness failed: no gradient")
    assert "probe_failed" in silence(AUTO, (failed,), set())["sharpness"]
    assert "probe_failed" not in silence(AUTO, (failed,), set())["fate"]


def test_sharpness_that_was_measured_lacks_a_threshold():
    assert "no threshold" in silence(AUTO, (), {"sharpness"})["sharpness"]


def test_a_record_of_an_older_version_gets_a_guess_for_every_chart():
    for about in ({}, {"settings": None}, {"settings": {"probes": [1]}}):
        assert set(silence(about, (), set())) == set(SHOWN)
        assert "is off, or has not measured" in silence(about, (), set())["persistence"]
