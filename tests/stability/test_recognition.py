"""Optimizers found by what they compute: subclasses, wrappers, fused and foreign forms; and unknown ones."""

import copy

import pytest
import torch

from lightning_topo.stability import awaits_first_step, parameter_thresholds, recognised
from lightning_topo.stability._recognition import check_step


class Inherits(torch.optim.Adam):
    pass


class Delegates(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class SAM(torch.optim.Optimizer):
    """Keeps the optimizer that steps as SAM and Lookahead do."""

    def __init__(self, inner):
        self.base_optimizer = inner
        super().__init__(inner.param_groups, {"rho": 0.05})

    def step(self, closure=None):
        return self.base_optimizer.step(closure)


class Lookahead(SAM):
    pass


class Foreign(torch.optim.Optimizer):
    """Adam under names of its own: `layout` renames the state, `extra` adds options."""

    def __init__(self, params, lr=1e-3, layout=("exp_avg", "exp_avg_sq"), dtype=None, counts_by_group=False, **extra):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | extra)
        self.layout, self.dtype, self.counts_by_group = layout, dtype, counts_by_group

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if self.counts_by_group:
                group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update({name: torch.zeros_like(p) for name in self.layout})
                    state.update({} if self.counts_by_group else {"step": 0})
                if not self.counts_by_group:
                    state["step"] += 1
                t = group["step"] if self.counts_by_group else state["step"]
                first, second = (state[name] for name in self.layout)
                first.lerp_(p.grad, 0.1)
                second.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                scale = (second / (1 - 0.999**t)).sqrt() + 1e-8
                p.sub_(group["lr"] * first / (1 - 0.9**t) / scale)
        if self.dtype is not None:
            for state in self.state.values():
                state.update({name: state[name].to(self.dtype) for name in self.layout})


class FusedAdam(Foreign):
    """DeepSpeed's and apex's: the decay's kind is an attribute, the count one of the group."""

    adam_w_mode = True


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.lerp(p.grad, momentum, 0.9).sign())
                momentum.lerp_(p.grad, 0.01)


class Lamb(Foreign):
    """Laid out as Adam's, but for an option that says that the step is another one."""

    def __init__(self, params):
        super().__init__(params, trust_clip=False)


GRADIENTS = [torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.5, -0.2]), torch.tensor([-0.4, 0.8, 0.1])]


def trained(make):
    theta = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    optimizer = make([theta])
    assert awaits_first_step([optimizer]) == (recognised(optimizer).rule is not None)
    for gradient in GRADIENTS:
        theta.grad, before = gradient.clone(), theta.detach().clone()
        optimizer.step()
        check_step(optimizer, {id(theta): before})
    return theta, optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Inherits(p),
        lambda p: Delegates(p),
        lambda p: SAM(torch.optim.Adam(p)),
        lambda p: SAM(SAM(Inherits(p))),
        lambda p: Foreign(p),
        lambda p: Foreign(p, bias_correction=True, amsgrad=False),
        lambda p: FusedAdam(p, counts_by_group=True, bias_correction=True),
    ],
)
def test_whoever_computes_what_adam_computes_has_its_threshold(make):
    theta, optimizer = trained(make)
    same, adam = trained(lambda p: torch.optim.Adam(p))
    torch.testing.assert_close(theta, same)
    (found,) = parameter_thresholds([optimizer], [theta], torch.ones(3)).parameters
    (expected,) = parameter_thresholds([adam], [same], torch.ones(3)).parameters
    torch.testing.assert_close(found.stability, expected.stability)
    torch.testing.assert_close(found.step, expected.step)
    torch.testing.assert_close(found.total, expected.total)


def test_bitsandbytes_adam_is_read_where_its_state_is_not_quantised():
    options = {"alpha": 0.0, "t_alpha": None, "optim_bits": 32, "block_wise": True}

    def make(dtype):
        def build(p):
            optimizer = Foreign(p, layout=("state1", "state2"), dtype=dtype, **options)
            optimizer.optimizer_name = "adam"
            return optimizer

        return build

    theta, optimizer = trained(make(None))
    same, adam = trained(lambda p: torch.optim.Adam(p))
    (found,) = parameter_thresholds([optimizer], [theta]).parameters
    torch.testing.assert_close(found.stability, parameter_thresholds([adam], [same]).parameters[0].stability)
    theta, optimizer = trained(make(torch.float32))
    optimizer.state[theta].update(state1=torch.zeros(3, dtype=torch.uint8), state2=torch.zeros(3, dtype=torch.uint8))
    assert "quantised" in parameter_thresholds([optimizer], [theta]).reason


def test_the_kind_of_weight_decay_is_read_from_fused_forms():
    for mode, decoupled in ((True, True), (False, False)):
        theta, optimizer = trained(lambda p: FusedAdam(p, counts_by_group=True))
        optimizer.adam_w_mode = mode
        optimizer.param_groups[0]["weight_decay"] = 0.3
        (found,) = parameter_thresholds([optimizer], [theta]).parameters
        assert (found.weight_decay == 0.0) == decoupled


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Lion, "Lion: its step follows signs"),
        (Lamb, "Lamb: its rule is not known"),
        (lambda p: Lookahead(torch.optim.SGD(p)), "Lookahead: what it does beside the step of SGD is not known"),
        (lambda p: Foreign(p), "Foreign: whether its step is that of Adam is not known"),  # nobody has seen it
        (lambda p: Foreign(p, layout=("exp_avg", "exp_avg_var")), "Foreign: its rule is not known"),
    ],
)
def test_where_nothing_is_known_the_reason_is_given(make, reason):
    theta = torch.ones(3, requires_grad=True)
    optimizer = make([theta])
    theta.grad = torch.ones(3)
    optimizer.step()
    found = parameter_thresholds([optimizer], [theta])
    assert found.parameters is None
    assert found.reason.startswith(reason)
    assert found.rules == ("",)


class SignDescent(torch.optim.SGD):
    """Has SGD's options, and steps by signs."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=group["lr"])


class Halved(torch.optim.Adam):
    def step(self, closure=None):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        with torch.no_grad():
            for p, start in zip(self.param_groups[0]["params"], before, strict=True):
                p.lerp_(start, 0.5)


class Trusting(Foreign):
    """LAMB without an option of its own: the step is as long as the weights."""

    @torch.no_grad()
    def step(self, closure=None):
        before = [p.clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        for p, start in zip(self.param_groups[0]["params"], before, strict=True):
            p.copy_(start + 1e-2 * (p - start) * start.norm() / (p - start).norm())


@pytest.mark.parametrize(
    ("make", "rule"), [(lambda p: SignDescent(p, lr=0.1), "SGD"), (Halved, "Adam"), (Trusting, "Adam")]
)
def test_who_steps_otherwise_than_its_layout_says_has_no_rule_once_that_was_seen(make, rule):
    theta = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    optimizer = make([theta])
    for gradient in GRADIENTS:
        theta.grad, before = gradient.clone(), theta.detach().clone()
        optimizer.step()
        check_step(optimizer, {id(theta): before})
        found = recognised(optimizer)
        assert (found.rule, f"is not that of {rule}, though" in found.reason) == (None, True)


class Renamed:
    """A step that its class defines anew, and leaves as it is."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
        (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True, "maximize": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.NAdam, {"weight_decay": 0.1}),
        (torch.optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        (torch.optim.Adamax, {"weight_decay": 0.1}),
    ],
)
def test_a_step_that_is_its_rule_s_is_known_as_such(kind, options, dtype):
    theta = torch.tensor([1.0, 2.0, -3.0], dtype=dtype, requires_grad=True)
    optimizer = type("My" + kind.__name__, (Renamed, kind), {})([theta], lr=0.01, **options)
    for gradient in GRADIENTS:
        theta.grad, before = gradient.to(dtype), theta.detach().clone()
        optimizer.step()
        check_step(optimizer, {id(theta): before})
        assert recognised(optimizer).rule.name == ("Adam" if kind is torch.optim.AdamW else kind.__name__)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 and later")
def test_muon_has_a_reason():
    theta = torch.ones(3, 2, requires_grad=True)
    assert "orthogonalised" in parameter_thresholds([torch.optim.Muon([theta])], [theta]).reason


def test_a_scheduler_and_a_hooked_class_change_nothing():
    _, optimizer = trained(lambda p: Inherits(p))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert recognised(optimizer).rule.name == "Adam"
    assert recognised(copy.deepcopy(optimizer)).rule.name == "Adam"


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("side", [0.97, 1.03])
def test_schedule_free_diverges_at_its_threshold(adaptive, side):
    schedulefree = pytest.importorskip("schedulefree")
    tiny, h = 1e-12, 3.0
    theta = torch.tensor([tiny], dtype=torch.float64, requires_grad=True)

    def make(lr):
        if adaptive:
            return schedulefree.AdamWScheduleFree([theta], lr=lr, eps=1.0, betas=(0.9, 0.97), foreach=False)
        return schedulefree.SGDScheduleFree([theta], lr=lr, momentum=0.9, foreach=False)

    optimizer = make(1e-9)
    optimizer.train()
    for _ in range(300):
        theta.grad = h * theta.detach()
        optimizer.step()
    group = optimizer.param_groups[0]

    def ratio():
        (found,) = parameter_thresholds([optimizer], [theta], (h * theta).detach()).parameters
        return float(found.stability) * h

    group["scheduled_lr"] = group["lr"] = 1.0
    # The mean's weights grow with the largest rate so far: as if all of it had been at the new one.
    group["lr_max"], group["weight_sum"] = 1.0, 300.0
    rate = side / ratio()
    group["lr"] = group["scheduled_lr"] = group["lr_max"] = rate
    group["weight_sum"] = 300.0 * rate**2
    assert ratio() == pytest.approx(side, rel=0.01)
    for _ in range(200):
        theta.grad = h * theta.detach()
        optimizer.step()
    assert (theta.abs().item() > 10 * tiny) == (side > 1.0)
