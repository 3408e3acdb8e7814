"""Find the neurons of a model by running it once."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from lightning_topo._memory import is_out_of_memory
from lightning_topo.neurons._fallback import incoming_groups
from lightning_topo.neurons._from_tapes import DEFAULT_KINDS, groups_from_tapes, wanted
from lightning_topo.neurons._group import KINDS, NeuronGroup
from lightning_topo.neurons._one_run import Forward, Run, record_run, untouched

log: logging.Logger = logging.getLogger(__name__)


def find_neuron_groups(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    run: Callable[[nn.Module], Any] | None = None,
    kinds: Collection[str] = DEFAULT_KINDS,
    include: Collection[str] = ("*",),
    exclude: Collection[str] = (),
    declared: Collection[NeuronGroup] = (),
    verify: bool = True,
    seed: int = 0,
) -> list[NeuronGroup]:
    """Find the groups of exchangeable hidden neurons of a model, and verify each group by permuting it.

    It runs the model once, in evaluation mode, records the run, and traces which axes of which tensors belong together.
    Axes that can be reindexed together without changing the output are a group. The units of the model's inputs and
    outputs are not groups. The model is left as it was: buffers, random state, modes, hooks, and parameters unless
    `run` moves them.

    A model without hidden neurons gives an empty list. If the model runs but cannot be traced, each group holds the
    incoming weights of a single layer, with `status="incoming_only"` and the reason.

    - `model`: The model; DDP and `torch.compile` may have wrapped it.
    - `example_inputs`: A tensor, a tuple (positional arguments) or a mapping (keywords) for `forward`. By default the
      model's `example_input_array`, or else a guess from its first layer.
    - `run`: Replaces the forward pass if something else is trained, as in
      `run=lambda module: module.training_step(batch, 0)`. It may return tensors in any nesting; if it returns a
      mapping with a `loss`, only the loss counts.
    - `kinds`: The kinds to find, see `NeuronGroup`; by default all but "residual", whose neurons span the network.
    - `include`: Patterns (as in `fnmatch`) of group names to keep.
    - `exclude`: Patterns of group names to leave out.
    - `declared`: Groups to add and verify, see `declare_neurons`.
    - `verify`: False leaves the groups "unverified". Whole experts are found by trial, so they need True.
    - `seed`: Draws the permutations that verify groups.

    Raises:
        ValueError: A kind that does not exist.
        RuntimeError: The forward pass fails on `example_inputs`, parameters are still lazy, or memory runs out: retry
            with fewer samples.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [group] = find_neuron_groups(model, torch.randn(4, 3))
    >>> group.name, group.kind, group.n, group.status
    ('0', 'unit', 8, 'verified')
    >>> group.gather(dict(model.named_parameters())).shape  # 3 incoming weights, a bias, 2 outgoing weights
    torch.Size([8, 6])
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"expected kinds among {KINDS}, got {sorted(unknown)}")
    model = unwrapped(model)
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise RuntimeError(
            f"expected parameters that have shapes, but {lazy[0]!r} is lazy: run one batch through the model "
            "first, then find its neurons"
        )

    by_hand = run is None and example_inputs is not None
    run = run or forward(model, example_inputs)
    reason = "there are no example inputs to run the model on: pass example_inputs or run"
    if run is not None:
        try:
            tape = record_run(model, run)
            reason = f"the run cannot be traced ({tape.obstacle}): declare its groups with declare_neurons"
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if by_hand and (failure := _fails(model, run)) is not None:
                raise RuntimeError(f"expected a model that runs on its inputs, got {failure!r}") from failure
            reason = f"the run cannot be traced ({_summary(error)}): declare its groups with declare_neurons"
        else:
            if not tape.obstacle:
                options = {"kinds": kinds, "include": include, "exclude": exclude, "declared": declared}
                return list(groups_from_tapes([tape], module=model, **options, verify=verify, seed=seed).groups)
        log.warning("%s", reason)
    return [*wanted(incoming_groups(model, reason), kinds, include, exclude), *declared]


def _fails(model: nn.Module, run: Run) -> Exception | None:
    """The error that a run which has failed raises without any tracing, if it does."""
    try:
        with untouched(model), torch.no_grad():
            run(model)
    except Exception as error:
        return error
    return None


def _summary(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner, nn.Module):
            model = inner
        else:
            return model


def forward(model: nn.Module, example_inputs: Any) -> Run | None:
    """The forward pass on example inputs: those given, the model's own, or a guess."""
    if example_inputs is None:
        example_inputs = getattr(model, "example_input_array", None)
    if example_inputs is None:
        example_inputs = guessed_inputs(model)
    if example_inputs is None:
        return None
    if isinstance(example_inputs, Mapping):
        return Forward(kwargs=example_inputs)
    return Forward(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))


def guessed_inputs(model: nn.Module) -> Tensor | None:
    """A small random batch of the shape that the model's first layer takes; None if it takes several."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            batch = torch.randn(4, module.in_features, generator=generator)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            spatial = (32,) * len(module.kernel_size)
            batch = torch.randn(2, module.in_channels, *spatial, generator=generator)
        elif isinstance(module, nn.Embedding):
            return torch.randint(module.num_embeddings, (2, 8), generator=generator).to(module.weight.device)
        else:
            continue
        return batch.to(module.weight)
    return None
