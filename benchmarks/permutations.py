"""Whether the groups that are found are groups: each is permuted in the real model, which is then trained.

    python -m benchmarks.permutations            # 20 models of the zoo, minutes
    python -m benchmarks.permutations --all      # every model of the zoo whose package is installed, an hour
    python -m benchmarks.permutations --only bert

It shares nothing with the verification of the package but the meaning of a slice: the model itself runs, in float64,
off its initialisation, before and after a permutation of the group's neurons, and after three steps of SGD with
momentum and of AdamW, their gradients clipped. Outputs must be equal, and parameters equal up to the same permutation,
to 1e-9. As a control one slice alone is permuted: `caught` counts the groups for which that is noticed.

`rounding` is what the training makes of a change in the last digit of its parameters. Deep networks with batch norm on
two images amplify it so much that `difference` is compared with 10 times `rounding`, where that is more than 1e-9.
Where that is more than 1e-2 the model says nothing, and its groups count as `open`.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from benchmarks.zoo import is_installed
from benchmarks.zoo_models import ZOO, Built
from lightning_topo._tape.names import named_tensors
from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.neurons._group import KINDS, ParamSlice
from lightning_topo.neurons._one_run import significant

MODELS = (
    "mlp-hardswish", "mobilenet-v3-blocks", "lstm", "gru-bidirectional", "transformer", "bilinear",
    "sparse-autoencoder", "radial-basis", "deep-sets", "committee", "unfold-mixer", "two-towers", "falcon", "llama",
    "mixtral", "mamba2", "bert", "beit", "convnext", "whisper",
)  # fmt: skip
TOLERANCE = 1e-9
MOST_TOLERANCE = 1e-2
STEPS = 3
Rule = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
RULES: dict[str, Rule] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    # A larger eps than usual: a gradient that is 0 but for rounding must not become a step of size lr.
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4),
}


@dataclass(frozen=True, slots=True)
class Checked:
    """The largest relative difference of output and trained parameters, that of the control, and that by rounding."""

    group: NeuronGroup
    difference: float
    control: float
    rounding: float

    @property
    def tolerance(self) -> float:
        """What may differ: far above rounding, far below what a slice alone changes."""
        return max(TOLERANCE, 10 * self.rounding)

    @property
    def is_open(self) -> bool:
        """Whether rounding changes so much that nothing can be said."""
        return not self.tolerance <= MOST_TOLERANCE

    @property
    def is_false(self) -> bool:
        """Whether permuting the group changes something."""
        return not self.is_open and not self.difference <= self.tolerance

    @property
    def is_caught(self) -> bool:
        """Whether the check notices a permutation of one slice alone."""
        return not self.is_open and not self.control <= self.tolerance


def check(built: Built, groups: Iterable[NeuronGroup], seed: int = 0) -> list[Checked]:
    """Permute each group in the model and train both."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # a forward pass may make tensors of its own
    try:
        return _checked(*_prepared(built, seed), groups, seed)
    finally:
        torch.set_default_dtype(before)


def _checked(model: nn.Module, inputs: Any, groups: Iterable[NeuronGroup], seed: int) -> list[Checked]:
    trained = {name: _trained(model, inputs, rule) for name, rule in RULES.items()}
    rounding = max(_rounding(model, inputs, rule, trained[name]) for name, rule in RULES.items())
    found = []
    for k, group in enumerate(groups):
        generator = torch.Generator().manual_seed(seed + k)
        order = torch.stack([torch.randperm(group.n, generator=generator) for _ in range(group.n_blocks)])
        if all(bool((row == torch.arange(group.n)).all()) for row in order):
            order = order.roll(1, dims=1)
        moved = Moved(model, inputs, group, order)
        whole = max(moved.difference(group.slices, rule, trained[name]) for name, rule in RULES.items())
        one = moved.difference(group.slices[:1], RULES["SGD"], trained["SGD"])
        found.append(Checked(group, whole, one, rounding))
    return found


def _rounding(model: nn.Module, inputs: Any, rule: Rule, trained: "Trained") -> float:
    """How far the training goes astray if its parameters change in their last digit."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.parameters():
            signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p *= 1 + torch.finfo(torch.float64).eps * signs
    outputs, after = _trained(moved, inputs, rule)
    return _difference(outputs, after, trained)


def _difference(outputs: list[Tensor], after: dict[str, Tensor], trained: "Trained") -> float:
    pairs = [*zip(outputs, trained[0], strict=True), *((after[name], trained[1][name]) for name in after)]
    return max(_relative(a, b) for a, b in pairs)


def _prepared(built: Built, seed: int) -> Built:
    """The model in float64, off its initialisation, as it trains but for dropout; its inputs likewise."""
    model, inputs = built
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data.to(torch.complex128) if p.is_complex() else p.data
            shape = torch.view_as_real(p).shape if p.is_complex() else p.shape
            noise = torch.randn(shape, generator=generator).double()
            p += 0.05 * (torch.view_as_complex(noise) if p.is_complex() else noise)
    if hasattr(model, "set_experts_implementation"):
        getattr(model, "set_experts_implementation")("eager")  # noqa: B009 - the grouped product takes no float64
    for module in model.modules():
        # LeViT keeps its biases from one evaluation to the next, with their graph.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or hasattr(module, "attention_bias_cache"):
            module.training = True
    return model, tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


class Lifted(TorchFunctionMode):
    """Where a model casts to float32, as its norms and softmaxes do, or holds a constant of it, all is in float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        lift = {torch.float32: torch.float64, torch.complex64: torch.complex128}

        def lifted(one: Any) -> Any:
            if isinstance(one, Tensor):
                return one.to(lift[one.dtype]) if one.dtype in lift else one
            return lift.get(one, one) if isinstance(one, torch.dtype) else one

        args, named = tree_map(lifted, args), tree_map(lifted, kwargs or {})
        return args[0].double() if func is Tensor.float else func(*args, **named)


def _output(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with Lifted():
        if isinstance(inputs, dict):
            return significant(model(**inputs))
        return significant(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


Trained = tuple[list[Tensor], dict[str, Tensor]]


def _trained(model: nn.Module, inputs: Any, rule: Rule) -> Trained:
    """The outputs at first, and the state after a few steps on a loss that weighs every output differently."""
    model = copy.deepcopy(model)
    optimizer = rule(p for p in model.parameters() if p.requires_grad)
    first: list[Tensor] = []
    for step in range(STEPS):
        outputs = [x for x in _output(model, inputs) if x.is_floating_point() or x.is_complex()]
        outputs = [torch.view_as_real(x) if x.is_complex() else x for x in outputs]
        if step == 0:
            first = [x.detach().clone() for x in outputs]
        generator = torch.Generator().manual_seed(1)
        loss = sum((x * torch.randn(x.shape, generator=generator)).mean() + x.square().mean() for x in outputs)
        optimizer.zero_grad()
        assert isinstance(loss, Tensor)
        loss.backward()
        # A step that makes a model diverge would make any rounding large.
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
    return first, {name: tensor.detach() for name, tensor in named_tensors(model).items()}


@dataclass(frozen=True, slots=True)
class Moved:
    """A model whose group is to be permuted by `order`, a row for each block."""

    model: nn.Module
    inputs: Any
    group: NeuronGroup
    order: Tensor

    def difference(self, pieces: Sequence[ParamSlice], rule: Rule, reference: Trained) -> float:
        """Between training the permuted model, and permuting the trained one."""
        moved = copy.deepcopy(self.model)
        state = {name: tensor.detach() for name, tensor in named_tensors(moved).items()}
        _permute(state, pieces, self.group, self.order)
        outputs, after = _trained(moved, self.inputs, rule)
        first: dict[tuple[int, torch.Size], Tensor] = {}  # tied tensors are one
        expected = {
            name: first.setdefault((tensor.data_ptr(), tensor.shape), reference[1][name].clone())
            for name, tensor in state.items()
        }
        _permute(expected, pieces, self.group, self.order)
        return _difference(outputs, after, (reference[0], expected))


def _permute(state: dict[str, Tensor], pieces: Iterable[ParamSlice], group: NeuronGroup, order: Tensor) -> None:
    """Reorder the neurons in place: entry by entry, by an index of the parameter's own memory."""
    done: set[tuple[int, ParamSlice]] = set()
    for piece in pieces:
        names = piece.names(group.n)
        if "*" in piece.param:
            copies = [state[name].clone() for name in names]
            for k, name in enumerate(names):
                state[name].copy_(copies[int(order[0, k])])
            continue
        tensor = state[piece.param]
        if (tensor.data_ptr(), ParamSlice("", piece.steps, piece.dims)) in done:  # tied under two names
            continue
        done.add((tensor.data_ptr(), ParamSlice("", piece.steps, piece.dims)))
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        index = piece.view(torch.arange(real.numel()).view(real.shape))
        index = index.reshape(group.n_blocks, group.n, -1)
        source = torch.stack([block[row] for block, row in zip(index, order, strict=True)])
        flat = real.reshape(-1).clone()
        flat[index.flatten()] = real.reshape(-1)[source.flatten()]
        real.copy_(flat.view(real.shape))


def _relative(a: Tensor, b: Tensor) -> float:
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    largest = float(b.abs().max()) if b.numel() else 0.0
    return float((a - b).abs().max()) / largest if largest > 0.0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one model of the zoo")
    parser.add_argument("--all", action="store_true", help="every model of the zoo")
    arguments = parser.parse_args()
    only = arguments.only
    warnings.simplefilter("ignore")
    print(f"{'model':27} groups false open caught  difference rounding")
    everything: list[Checked] = []
    for entry in ZOO:
        chosen = entry.name == only if only else arguments.all or entry.name in MODELS
        if not chosen or not is_installed(entry):
            continue
        torch.manual_seed(0)
        try:
            built = entry.build()
            groups = [g for g in find_neuron_groups(*built, kinds=KINDS) if g.status == "verified"]
            found = check(built, groups)
        except Exception as error:  # a model that does not run in float64, say: the others are still worth checking
            print(f"{entry.name:27} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
            continue
        everything += found
        print(_row(entry.name, found), flush=True)
        for one in found:
            if one.is_false or only:
                print(f"  {one.group.name}: {one.group.kind}, {one.difference:.1e}, control {one.control:.1e}")
    print(_row("all", everything))
    least = min((one.control for one in everything if one.is_caught), default=0.0)
    print(f"the smallest control that is caught: {least:.1e}")


def _row(name: str, found: list[Checked]) -> str:
    false, caught = sum(one.is_false for one in found), sum(one.is_caught for one in found)
    judged = [one for one in found if not one.is_open]
    difference, rounding = (
        max((read(one) for one in some), default=0.0)
        for some, read in ((judged, lambda one: one.difference), (found, lambda one: one.rounding))
    )
    n_open = len(found) - len(judged)
    return f"{name:27} {len(found):6} {false:5} {n_open:4} {caught:6}  {difference:10.1e} {rounding:8.1e}"


if __name__ == "__main__":
    main()
