"""What operators drew from generators, and that these stand where they stood when an operator runs again."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, Gamma

from lightning_topo._tape import StepRecorder, accepted, replay
from lightning_topo._tape.draws import DirichletAsDrawn, Draws, GammaAsDrawn
from tests.tape.fused_attention import LENGTH, UNTOLD, Block, N, kernels
from tests.tape.steps import labels


@pytest.fixture
def kernel():
    with kernels():
        yield


def test_a_kernel_that_does_not_tell_draws_nothing_of_the_training_s_when_it_runs_again(kernel) -> None:
    torch.manual_seed(0)
    net, tokens = Block(UNTOLD[0]), labels(0, N * LENGTH, 7).view(N, LENGTH)
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
        "cuDNN's attention (torch.backends.cuda.enable_cudnn_sdp(False) lets torch take another one) "
        "does not tell what its dropout has dropped",
    )
    replay(tape, {}, formulas=False)
    assert torch.equal(torch.get_rng_state(), was)


@torch.library.custom_op("lightning_topo_tests::noisy", mutates_args=())
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand(x.shape)


noisy.register_autograd(lambda context, grad: grad)


def test_nor_does_an_operator_of_somebody_else_s() -> None:
    net = nn.Linear(3, 2)
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(noisy(net(torch.ones(4, 3))).mean())
    [tape] = recorder.end()
    was = torch.get_rng_state()
    assert "differs" in accepted(tape).obstacle
    assert torch.equal(torch.get_rng_state(), was)


def test_what_was_drawn_stays_when_its_memory_is_written() -> None:
    draws, own, theirs = Draws(), torch.ones(3), torch.ones(3)
    kept, copied = draws.keep(own, 7), draws.keep(theirs, None)
    theirs.zero_()
    assert draws.values[kept].data_ptr() == own.data_ptr()
    draws.about_to_write(8)
    assert draws.values[kept].data_ptr() == own.data_ptr()
    draws.about_to_write(7)
    own.zero_()
    assert [draws.values[name].tolist() for name in (kept, copied)] == [[1.0] * 3] * 2
    assert kept != copied


@torch.library.custom_op("lightning_topo_tests::scaled_dot_product_of_ones_own", mutates_args=())
def of_ones_own(x: Tensor, factor: float) -> Tensor:
    return x * factor


of_ones_own.register_autograd(lambda context, grad: (grad * 2.0, None))


def test_an_operator_is_not_attention_by_its_name() -> None:
    net, recorder = nn.Linear(3, 2), StepRecorder()
    recorder.begin(net)
    loss = of_ones_own(net(torch.ones(4, 3)), 2.0).mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    assert accepted(tape, {name: p.grad for name, p in net.named_parameters()}).obstacle == ""


REPARAMETRISED = {
    "gamma": lambda h: Gamma(h.exp(), 1.0).rsample(),
    "beta": lambda h: Beta(h.exp(), h.exp()).rsample(),
    "Dirichlet": lambda h: Dirichlet(h.exp()).rsample(),
    "random slope": lambda h: F.rrelu(h, training=True),
    "random slope in place": lambda h: F.rrelu(h.clone(), training=True, inplace=True),
    "mean slope": lambda h: F.rrelu(h, training=False),
}


@pytest.mark.parametrize("between", REPARAMETRISED.values(), ids=REPARAMETRISED)
def test_a_replay_has_what_was_drawn_and_its_gradient(between) -> None:
    torch.manual_seed(0)
    net, recorder = nn.Linear(3, 4), StepRecorder()
    recorder.begin(net)
    loss = (between(net(torch.randn(6, 3))) * torch.arange(4)).square().mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    judged = accepted(tape, {name: p.grad for name, p in net.named_parameters()})
    assert (judged.obstacle, judged.gradient_obstacle) == ("", "")


@pytest.mark.parametrize("drawn", [GammaAsDrawn, DirichletAsDrawn])
def test_where_torch_knows_no_second_derivative_there_is_none(drawn) -> None:
    shape = torch.tensor([0.5, 2.0], requires_grad=True)
    [slope] = torch.autograd.grad(drawn.apply(shape, torch.tensor([0.3, 0.7]))[0], shape, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match="not implemented"):
        slope.sum().backward()
