"""Bytes of a recorded step, counted by hand from its layouts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape
from lightning_topo._tape.footprint import graph_bytes, recorded_bytes


def tape_of(net: nn.Module, loss) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss())
    [tape] = recorder.end()
    return tape


def test_memory_that_is_written_in_place_or_viewed_counts_once() -> None:
    net, x = nn.Linear(2, 4), torch.ones(3, 2)
    outer = tape_of(net, lambda: net(x).relu().sum())
    inside = tape_of(net, lambda: net(x).relu_().view(2, 6)[:, 1:].transpose(0, 1).sum())
    assert recorded_bytes(outer) == 4 * (12 + 12 + 1)
    # One buffer of 12 numbers, and the sum over the view; `sum` reads the view where it lies.
    assert recorded_bytes(inside) == 4 * (12 + 1)


def test_parameters_and_data_are_not_made_by_the_step() -> None:
    net, x = nn.Linear(1000, 1), torch.ones(50, 1000)
    assert recorded_bytes(tape_of(net, lambda: net(x).sum())) == 4 * (50 + 1)


def test_a_graph_in_double_precision_is_twice_as_large() -> None:
    net, x = nn.Linear(2, 4), torch.ones(3, 2)
    tape = tape_of(net, lambda: net(x).relu().sum())
    assert graph_bytes(tape, torch.float64) == 2 * graph_bytes(tape, torch.float32)
    assert graph_bytes(tape, torch.float32) == graph_bytes(tape, None) > recorded_bytes(tape)


def test_what_the_step_cast_to_half_is_counted_in_the_precision_of_the_replay() -> None:
    net, x = nn.Linear(2, 4).bfloat16(), torch.ones(3, 2, dtype=torch.bfloat16)
    tape = tape_of(net, lambda: net(x).relu().sum())
    assert graph_bytes(tape, torch.float32) == 2 * graph_bytes(tape, None)


def test_fused_attention_counts_its_scores_which_grow_with_the_square_of_the_length() -> None:
    net = nn.Linear(8, 8)

    def attends(length: int) -> Tape:
        x = torch.ones(2, length, 8)

        def loss() -> Tensor:
            y = net(x).unflatten(-1, (2, 4)).transpose(1, 2)
            return F.scaled_dot_product_attention(y, y, y).sum()

        return tape_of(net, loss)

    def beyond(length: int) -> int:
        tape = attends(length)
        return graph_bytes(tape, torch.float32) - 3 * recorded_bytes(tape)

    # Scores, masked scores and weights of 2 samples and 2 heads, three times for the gradient.
    assert [beyond(length) for length in (16, 32)] == [3 * 4 * 3 * 2 * 2 * length**2 for length in (16, 32)]
