"""Dropout inside of fused attention, by a kernel of the tests' own that tells as much as a GPU's: two numbers."""

import pytest
import torch
import torch.nn.functional as F

from lightning_topo._tape import TapeLoss
from lightning_topo._tape.attention_dropout import (
    generator_at,
    kept_weights,
    philox_rows,
    without_attention_dropout,
)
from lightning_topo._tape.formulas import attention, named_arguments
from lightning_topo._tape.names import named_tensors
from lightning_topo.neurons._sample_cuts import SampleCuts
from tests.callbacks.untouched import NEEDS_A_GPU
from tests.tape.fused_attention import DROPOUT, HEADS, LENGTH, Block, N, kernels
from tests.tape.recording import recorded
from tests.tape.steps import labels


@pytest.fixture
def step():
    torch.manual_seed(0)
    with kernels():
        net, tokens = Block(), labels(0, N * LENGTH, 7).view(N, LENGTH)
        yield net, recorded(net, lambda: F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()))


def test_the_replay_drops_what_the_kernel_dropped(step) -> None:
    net, tape = step
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    [draw] = tape.draws.values()
    assert draw[:, 2:].tolist() == [[i, N] for i in range(N)]
    assert TapeLoss(net, [tape])().item() == pytest.approx(tape.recorded[0].item(), rel=1e-6)
    assert without_attention_dropout(tape).draws == {}
    kept = TapeLoss(net, [without_attention_dropout(tape)])()
    assert abs(kept.item() - tape.recorded[0].item()) > 1e-3


def test_a_part_of_the_samples_drops_what_these_dropped(step) -> None:
    net, tape = step
    parts = SampleCuts()(tape, 2, named_tensors(net), torch.float32)
    assert [part.n_samples for _, part in parts] == [2, 2, 2]
    assert [next(iter(part.draws.values()))[:, 2].tolist() for _, part in parts] == [[0, 1], [2, 3], [4, 5]]
    loss = TapeLoss(net, [tape], cut=SampleCuts())
    whole, cut = ([torch.autograd.grad(part(), list(net.parameters())) for _, part in some]
                  for some in (loss.parts(), loss.pieces(2)))  # fmt: skip
    for gradients in zip(*whole, *cut, strict=True):
        torch.testing.assert_close(gradients[0], sum(gradients[1:]) / len(cut), rtol=1e-4, atol=1e-6)


def test_a_kernel_that_does_not_tell_and_one_that_drops_nothing_have_no_rows() -> None:
    out = torch.zeros(N, HEADS, LENGTH, 4)
    numbers = [out, None, torch.tensor(3), torch.tensor(8)]
    name = "aten::_scaled_dot_product_efficient_attention"
    assert philox_rows(name, 0.0, numbers) is None
    assert philox_rows("aten::_scaled_dot_product_cudnn_attention", 0.1, numbers) is None
    rows = philox_rows(name, 0.1, numbers)
    assert rows is not None
    assert rows[:, :2].tolist() == [[3, 8]] * N
    flash = [out, *[None] * 5, torch.tensor([3, 8]).view(torch.uint64), None, None]
    rows = philox_rows("aten::_scaled_dot_product_flash_attention", 0.1, flash)
    assert rows is not None
    assert rows[0].tolist() == [3, 8, 0, N]


@NEEDS_A_GPU
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("_scaled_dot_product_efficient_attention", torch.float32, (3, 2, 21, 8)),
        ("_scaled_dot_product_efficient_attention", torch.float16, (2, 3, 40, 64)),
        ("_scaled_dot_product_flash_attention", torch.bfloat16, (3, 2, 21, 8)),
        ("_scaled_dot_product_flash_attention", torch.float16, (2, 3, 257, 64)),
        ("_scaled_dot_product_flash_attention", torch.float16, (2, 3, 130, 128)),
    ],
)
def test_the_mask_is_that_of_the_device_and_its_generator_stands_where_it_was(name, dtype, shape, causal) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))
    given = (q, k, v, None, True) if "efficient" in name else (q, k, v)
    kernel = getattr(torch.ops.aten, name).default
    results = kernel(*given, DROPOUT, causal)
    rows = philox_rows(f"aten::{name}", DROPOUT, results)
    assert rows is not None
    was = torch.cuda.get_rng_state()
    for precise in (False, True):  # the replay is in another precision, too
        arguments = named_arguments(kernel, (*given, DROPOUT, causal), {})
        arguments |= {"query": q.float(), "key": k.float()} if precise else {}
        kept = kept_weights(f"aten::{name}", arguments, rows)
        exact = attention(q.double(), k.double(), v.double(), causal=causal, kept=kept, dropout=DROPOUT)
        torch.testing.assert_close(results[0].double(), exact, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.05)
        assert torch.equal(kept_weights(f"aten::{name}", arguments, rows[1:]), kept[1:])
        assert abs(kept.float().mean().item() - (1 - DROPOUT)) < 0.1
    with generator_at(rows, q.device):
        assert torch.equal(kernel(*given, DROPOUT, causal)[0], results[0])
    assert torch.equal(torch.cuda.get_rng_state(), was)
