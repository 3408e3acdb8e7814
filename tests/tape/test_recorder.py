"""The training is what it would have been, and the tape is left whatever happens."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_topo._tape import StepRecorder, Tape, accepted
from tests.tape.steps import TRAININGS, Nobody, Training


def trained(build, recorded: bool) -> tuple[Training, list[Tape], list[Tensor]]:
    """Three steps, the first of which is recorded or not; with the states of all generators after each."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what user code draws from
    made = build()
    tapes: list[Tape] = []
    states = []
    for index in range(3):
        recorder = StepRecorder()
        if recorded and index < 2:
            recorder.begin(made.module)
            made.step(recorder, index)
            tapes += recorder.end()
        else:
            made.step(Nobody(), index)
        states.append(torch.get_rng_state())
    return made, tapes, states


def tensors_of(made: Training) -> dict[str, Tensor]:
    states = [state for optimizer in made.optimizers for state in optimizer.state.values()]
    moments = {f"{i}.{k}": v for i, state in enumerate(states) for k, v in state.items() if isinstance(v, Tensor)}
    return {**made.module.state_dict(), **moments}


@pytest.mark.parametrize("name", TRAININGS)
def test_training_is_bitwise_the_same(name: str) -> None:
    plain, _, states = trained(TRAININGS[name], recorded=False)
    watched, tapes, watched_states = trained(TRAININGS[name], recorded=True)
    expected, found = tensors_of(plain), tensors_of(watched)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        dense = tensor.to_dense() if tensor.is_sparse else tensor
        assert torch.equal(dense, found[key].to_dense() if tensor.is_sparse else found[key]), key
    assert all(torch.equal(a, b) for a, b in zip(states, watched_states, strict=True))
    assert tapes
    assert _get_current_dispatch_mode_stack() == []


@pytest.mark.parametrize("name", TRAININGS)
def test_the_replay_is_the_step(name: str) -> None:
    _, tapes, _ = trained(TRAININGS[name], recorded=True)
    assert [(tape.obstacle, accepted(tape).obstacle) for tape in tapes] == [("", "")] * len(tapes)
