"""Dropout inside of fused attention, by a kernel of the tests' own that tells as much as a GPU's: two numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, TapeLoss, accepted, replay
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
from tests.tape.recording import recorded
from tests.tape.steps import labels

DROPOUT = 0.4
N, LENGTH, HEADS = 6, 5, 2
NAMES = ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward")


def fill(numbers: Tensor, _: float, seed: int, offset: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + offset)
    return numbers.copy_(torch.rand(numbers.shape, generator=generator))


def parts(q, k, dropout, causal, seed, offset) -> tuple[Tensor, Tensor]:
    """The softmax, and by what it is multiplied."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    kept = fill(torch.empty(scores.shape), dropout, int(seed), int(offset)) > dropout
    return scores.softmax(-1), kept / (1 - dropout)


def forward(q, k, v, bias, _, dropout=0.0, causal=False, *, scale=None):
    seed, offset = torch.randint(10**6, (2,)).unbind()
    weights, factors = parts(q, k, dropout, causal, seed, offset)
    return weights * factors @ v, q.new_zeros(q.shape[:3]), seed, offset


def backward(grad, q, k, v, bias, out, lse, seed, offset, dropout, mask, causal=False, *, scale=None):
    weights, factors = parts(q, k, dropout, causal, seed, offset)
    slopes = grad @ v.transpose(-2, -1) * factors
    slopes = weights * (slopes - (slopes * weights).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
    return slopes @ k, slopes.transpose(-2, -1) @ q, (weights * factors).transpose(-2, -1) @ grad, None


@pytest.fixture
def kernels():
    library = torch.library.Library("aten", "IMPL")
    for name, function in zip((*NAMES, "_fill_mem_eff_dropout_mask_"), (forward, backward, fill), strict=True):
        library.impl(name, function, "CPU")
    yield
    library._destroy()


class Block(nn.Module):
    def __init__(self, kernel: str = NAMES[0]) -> None:
        super().__init__()
        self.kernel = getattr(torch.ops.aten, kernel)
        self.tokens, self.qkv, self.head = nn.Embedding(7, 8), nn.Linear(8, 24), nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.tokens(tokens)).view(*tokens.shape, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
        out, *_ = self.kernel(q, k, v, None, True, DROPOUT, True)
        return self.head(out.transpose(1, 2).flatten(2))


@pytest.fixture
def step(kernels):
    torch.manual_seed(0)
    net, tokens = Block(), labels(0, N * LENGTH, 7).view(N, LENGTH)
    return net, recorded(net, lambda: F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()))


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


def untold(q, k, v, bias, _, dropout=0.0, causal=False, debug=False, *, scale=None):
    """As the kernel above, but it does not tell its numbers."""
    out, lse, seed, offset = forward(q, k, v, bias, True, dropout, causal)
    return out, lse, None, None, LENGTH, LENGTH, seed, offset, None


def untold_backward(grad, q, k, v, out, lse, seed, offset, bias, *_, scale=None):
    torch.rand(3)
    dropout, causal = _[-2:]
    return backward(grad, q, k, v, bias, out, lse, seed, offset, dropout, None, causal)[:3]


@pytest.fixture
def untelling(kernels):
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_cudnn_attention", untold, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention_backward", untold_backward, "CPU")
    yield
    library._destroy()


def test_a_kernel_that_does_not_tell_draws_nothing_of_the_training_s_when_it_runs_again(untelling) -> None:
    torch.manual_seed(0)
    net, tokens = Block("_scaled_dot_product_cudnn_attention"), labels(0, N * LENGTH, 7).view(N, LENGTH)
    recorder = StepRecorder()
    recorder.begin(net)
    loss = F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    was = torch.get_rng_state()
    judged = accepted(tape, {name: p.grad for name, p in net.named_parameters()})
    assert (judged.obstacle, judged.gradient_obstacle) == (
        "",
        "aten::_scaled_dot_product_cudnn_attention does not expose its dropout mask",
    )
    replay(tape, {}, formulas=False)
    assert torch.equal(torch.get_rng_state(), was)


@torch.library.custom_op("lightning_topo_tests::noisy", mutates_args=())
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand(x.shape)


noisy.register_autograd(lambda context, grad: grad)


def test_nor_does_an_operator_of_somebody_else_s(kernels) -> None:
    net = nn.Linear(3, 2)
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(noisy(net(torch.ones(4, 3))).mean())
    [tape] = recorder.end()
    was = torch.get_rng_state()
    assert "differs" in accepted(tape).obstacle
    assert torch.equal(torch.get_rng_state(), was)


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
