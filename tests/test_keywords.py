"""A wrong keyword is answered with the right one, at construction, by every class that a user constructs."""

import copy
import inspect
import pickle

import pytest
from torch import nn

import lightning_topo as lt
from lightning_topo._watch.settings import group_list
from lightning_topo.outputs import StopRules
from lightning_topo.probes import StepEdge


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: lt.TopologyMonitor(every_n_steps=10), r"got every_n_steps: a period is a probe's own"),
        (
            lambda: lt.TopologyMonitor(max_overhed=0.1),
            r"TopologyMonitor: .*, got max_overhed: did you mean max_overhead\?",
        ),
        (lambda: lt.TopologyWatch(nn.Linear(1, 1), [], max_record_md=1.0), r"did you mean max_record_mb\?"),
        (
            lambda: lt.TopologyStepGuard(max_rato=0.5),
            r"among max_ratio, mode, groups, seed, got max_rato: did you mean",
        ),
        (lambda: lt.TopologyEarlyStopping(stopon="instability"), r"did you mean stop_on\?"),
        (lambda: lt.TopologyLRFinder(lowest=1e-4), r"TopologyLRFinder: .*, got lowest$"),
        (lambda: lt.Distortion(every=10), r"Distortion: expected a keyword among every_n_steps, got every"),
        (lambda: lt.Fate(n_step=1), r"Fate: .*, got n_step"),
        (lambda: lt.Persistence(maxdim=1), r"did you mean max_dim\?"),
        (lambda: lt.Sharpness(tolerence=0.1), r"did you mean tolerance\?"),
        (lambda: StepEdge(window_size=1), r"StepEdge: .*, got window_size"),
        (lambda: lt.Period(steps_=1), r"Period: .*, got steps_"),
        (lambda: lt.PhaseRules(holdsteps=1), r"did you mean hold_steps\?"),
        (lambda: StopRules(mincount=1), r"did you mean min_count\?"),
    ],
)
def test_an_unknown_keyword_is_answered(make, answer):
    with pytest.raises(TypeError, match=answer):
        make()


@pytest.mark.parametrize(
    ("groups", "error", "answer"),
    [
        (None, TypeError, "a list of NeuronGroup, got None"),
        (3, TypeError, "a list of NeuronGroup, got 3"),
        (lt.rows("embedding.weight"), TypeError, r"got one Rows: write groups=\[...\]"),
        ("net.0", ValueError, "a list of NeuronGroup, got 'net.0'"),
    ],
)
def test_groups_are_a_list(groups, error, answer):
    with pytest.raises(error, match=answer):
        group_list(groups)
    assert group_list("auto") == "auto"
    assert group_list(["auto"]) == ("auto",)


def test_hugging_faces_door_answers_before_it_touches_the_trainer():
    pytest.importorskip("transformers")
    with pytest.raises(TypeError, match=r"TopologyTrainerCallback: .* did you mean max_overhead\?"):
        lt.TopologyTrainerCallback(None, max_overheads=0.1)


def test_a_class_stays_what_it_was():
    assert list(inspect.signature(lt.TopologyStepGuard).parameters) == ["max_ratio", "mode", "groups", "seed"]
    probe = lt.Distortion(every_n_steps=3)
    assert copy.deepcopy(probe) == pickle.loads(pickle.dumps(probe)) == probe == lt.Distortion(3)
    with pytest.raises(TypeError, match="positional"):
        lt.TopologyMonitor([], "auto")

    class Own(lt.TopologyStepGuard):
        def __init__(self, mine):
            super().__init__(max_ratio=mine)

    assert Own(mine=0.5).max_ratio == 0.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_ratio'"):
        Own(max_ratio=0.5)
