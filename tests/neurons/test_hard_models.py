"""Models that graph capture trips over, and models that cannot be traced at all."""

import logging
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x)


def test_control_flow_that_depends_on_values() -> None:
    class Branching(Wrapped):
        def forward(self, x):
            h = self.net[0](x)
            steps = int(x.abs().sum()) % 3 + 1
            for _ in range(steps):
                h = torch.tanh(h) if float(h.detach().mean()) < 100 else h.relu()
            return self.net[2](h)

    [group] = find_neuron_groups(Branching(), X)
    assert (group.name, group.status) == ("net.0", "verified")


def test_inputs_in_dictionaries_and_nested_outputs() -> None:
    class Nested(Wrapped):
        def forward(self, batch, scale=1.0):
            out = self.net(batch["features"][0] * scale)
            return {"out": (out, [out.sum()]), "note": "text"}

    [group] = find_neuron_groups(Nested(), {"batch": {"features": (X, None)}, "scale": 2.0})
    assert group.status == "verified"


def test_a_compiled_model_is_seen_through() -> None:
    [group] = find_neuron_groups(torch.compile(mlp()), X)
    assert (group.name, group.params, group.status) == ("0", ("0.weight", "0.bias", "2.weight"), "verified")


def test_a_compiled_part_of_a_model_keeps_clean_names() -> None:
    model = Wrapped()
    model.net = torch.compile(model.net)  # pyright: ignore
    [group] = find_neuron_groups(model, X)
    assert (group.name, group.status) == ("net.0", "verified")
    assert group.gather(dict(model.named_parameters())).shape == (8, 9)


def test_a_model_inside_distributed_data_parallel(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.fspath(tmp_path)}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(mlp())
        [group] = find_neuron_groups(model, X)
        assert (group.name, group.status) == ("0", "verified")
        assert group.gather(dict(model.named_parameters())).shape == (8, 9)
    finally:
        torch.distributed.destroy_process_group()


def test_one_parameter_under_two_names() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.again.weight = self.first.weight

        def forward(self, x):
            return self.head(torch.tanh(self.again(torch.tanh(self.first(x)))))

    # The input's axis is data, and the shared weight ties the hidden units to it: none may be exchanged.
    assert [g.name for g in find_neuron_groups(Shared(), X)] == []

    class SharedInside(Shared):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = nn.Linear(5, 5)

        def forward(self, x):
            return super().forward(torch.tanh(self.inputs(x)))

    [group] = find_neuron_groups(SharedInside(), X)
    assert group.status == "verified"
    assert sorted(group.params) == [
        "again.bias",
        "first.bias",
        "first.weight",
        "head.weight",
        "inputs.bias",
        "inputs.weight",
    ]


def test_metrics_and_random_noise_in_a_training_step() -> None:
    class Noisy(Wrapped):
        def __init__(self) -> None:
            super().__init__()
            self.spread = nn.Linear(5, 8)

        def training_step(self, batch, batch_idx):
            mean, deviation = self.net[0](batch), F.softplus(self.spread(batch))
            code = mean + deviation * torch.randn_like(mean)
            return {"loss": self.net[2](torch.tanh(code)).square().mean(), "code": code}

    groups = find_neuron_groups(Noisy(), run=lambda module: module.training_step(X, 0))
    assert [(g.name, g.status) for g in groups] == [("net.0", "verified")]
    assert "spread.weight" in groups[0].params


def test_mixed_precision_inside_the_step() -> None:
    class Autocast(Wrapped):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x)

    [group] = find_neuron_groups(Autocast(), X)
    assert group.status == "verified"


def test_an_operator_without_a_rule_leaves_what_feeds_the_neurons(caplog) -> None:
    class Triangular(Wrapped):
        def forward(self, x):
            hidden = self.net[0](x)
            return self.net[2](torch.linalg.qr(hidden).R)

    with caplog.at_level(logging.WARNING):
        [group] = find_neuron_groups(Triangular(), X)
    assert (group.name, group.status, group.params) == (
        "net.0",
        "incoming_only",
        ("net.0.weight", "net.0.bias"),
    )
    assert "register_rule" in group.reason
    assert "aten.linalg_qr" in caplog.text


def test_a_run_that_cannot_be_traced_leaves_single_layers() -> None:
    class Refusing(Wrapped):
        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("no dispatch modes here")
            return self.net(x)

    [group] = find_neuron_groups(Refusing(), X)
    assert (group.name, group.status) == ("net.0", "incoming_only")
    assert "no dispatch modes here" in group.reason
    assert "declare_neurons" in group.reason
    assert group.gather(dict(Refusing().named_parameters())).shape == (8, 6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_traced() -> None:
    [group] = find_neuron_groups(torch.jit.script(mlp()), X)
    assert (group.name, group.status) == ("0", "verified")


def test_a_model_that_does_not_run_says_so() -> None:
    with pytest.raises(RuntimeError, match="expected a model that runs on its inputs"):
        find_neuron_groups(mlp(), torch.randn(2, 4))


def test_weights_that_are_not_finite_do_not_hide_the_neurons() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status) == (8, "verified")
    assert bool(model[0].weight.isnan().all())


def test_a_model_that_overflows_when_perturbed_is_left_unverified() -> None:
    class Overflow(Wrapped):
        def forward(self, x):
            return self.net(x) + torch.tensor(float("inf"))

    [group] = find_neuron_groups(Overflow(), X)
    assert group.status == "unverified"
    assert "did not run on perturbed parameters" in group.reason


def test_a_lightning_module_with_metrics_logging_and_manual_optimization() -> None:
    from lightning import LightningModule
    from torchmetrics.classification import MulticlassAccuracy

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.accuracy = mlp(), MulticlassAccuracy(3)
            self.example_input_array = X

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            self.accuracy(logits, batch[1])
            loss = F.cross_entropy(logits, batch[1])
            if not self.automatic_optimization:
                self.net[0].weight.requires_grad_(False)
                loss.backward()
            return loss

    batch = (X, torch.randint(3, (6,)))
    model = Classifier()
    assert [g.status for g in find_neuron_groups(model)] == ["verified"]
    [group] = find_neuron_groups(model, run=lambda module: module.training_step(batch, 0))
    assert (group.name, group.status) == ("net.0", "verified")
    assert int(model.accuracy.tp.sum()) == 0
    assert not model.accuracy.update_called

    model.automatic_optimization = False
    before = [p.requires_grad for p in model.parameters()]
    [group] = find_neuron_groups(model, run=lambda module: module.training_step(batch, 0))
    assert group.status == "verified"  # that the step has used up its graph does not matter: its calls are recorded
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_a_run_that_returns_nothing_cannot_prove_anything() -> None:
    def run(model: nn.Module) -> None:
        model(X).square().mean()

    assert {g.status for g in find_neuron_groups(mlp(), run=run)} == {"unverified"}


class OnGraph(nn.Module):
    """Two layers with a sparse neighbourhood between them, as an attribute, a buffer or an input."""

    def __init__(self, held, layout, product):
        super().__init__()
        self.a, self.b, self.held, self.product = nn.Linear(5, 16), nn.Linear(16, 3), held, product
        edges = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
        matrix = torch.sparse_coo_tensor(edges, torch.ones(60), (20, 20)).coalesce()
        matrix = {"coo": matrix, "csr": matrix.to_sparse_csr(), "csc": matrix.to_sparse_csc()}[layout]
        if held == "buffer":
            self.register_buffer("graph", matrix)
        elif held == "attribute":
            self.graph = matrix
        self.given = matrix

    def forward(self, x, graph=None):
        graph, h = self.graph if graph is None else graph, torch.relu(self.a(x))
        if self.product == "addmm":
            return self.b(torch.sparse.addmm(h, graph, h, beta=0.5, alpha=0.2))
        return self.b(torch.sparse.mm(graph, h) if self.product == "mm" else graph @ h)


@pytest.mark.filterwarnings("ignore:Sparse C")
@pytest.mark.parametrize("held", ["attribute", "buffer", "input"])
@pytest.mark.parametrize("product", ["mm", "@", "addmm"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_neurons_around_a_sparse_matrix(held, layout, product, recwarn) -> None:
    net = OnGraph(held, layout, product)
    inputs = (torch.randn(20, 5), *([net.given] if held == "input" else []))
    before = net.given.to_dense()
    try:
        net(*inputs)
    except RuntimeError:
        pytest.skip(f"torch has no {product} of a {layout} matrix")
    assert [(g.name, g.n, g.status) for g in find_neuron_groups(net, inputs)] == [("a", 16, "verified")]
    assert torch.equal(net.given.to_dense(), before)
    assert not [str(warning.message) for warning in recwarn if "put back" in str(warning.message)]
