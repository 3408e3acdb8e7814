"""Trial steps: taken as in training, then undone bitwise."""

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_topo._protection import same_draws, same_random_state, unchanged
from lightning_topo._watch.gradient_scales import GradientScales
from lightning_topo._watch.recording import Recording


@contextmanager
def on_trial(trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
    """Steps may be taken inside; at the end everything is bitwise as it was.

    Parameters, gradients, buffers, metrics and other attributes of the module; the optimizer's state, learning rates,
    hooks and counters; the gradient scaler; every random state; what samplers and data sets remember. Loggers and
    callbacks take no part. Schedulers and loops are not touched at all. Inside, the random state is that of `seed`.
    """
    loggers, callbacks = trainer.loggers, _callbacks(trainer)
    with (
        same_random_state(seed),
        same_draws(*tree_leaves(trainer.train_dataloader)),
        unchanged(module),
        _same_parameters(trainer, module),
        _same_scaler(trainer),
        _borrowed(*trainer.optimizers),
    ):
        module.__dict__["log"] = module.__dict__["log_dict"] = _mute
        trainer.loggers = [DummyLogger()] if loggers else []
        _set_callbacks(trainer, [])
        try:
            yield
        finally:
            trainer.loggers = loggers
            _set_callbacks(trainer, callbacks)


def take_step(
    trainer: Trainer, module: LightningModule, batches: Sequence[Any], scales: GradientScales | None = None
) -> float:
    """One update of the only optimizer from the mean loss over the batches, which is returned.

    Precision, clipping and the module's own hooks take part as in training; with several processes the loss is their
    mean. `scales` measure how much of the gradient the optimizer is handed.
    """
    scales = GradientScales() if scales is None else scales
    optimizer, total = trainer.optimizers[0], 0.0

    @torch.enable_grad()
    def closure() -> Tensor:
        nonlocal total
        module.on_before_zero_grad(optimizer)
        module.optimizer_zero_grad(trainer.current_epoch, 0, optimizer)
        losses = []
        for batch in batches:
            loss = _loss(trainer.strategy.training_step(*_arguments(module, batch)))
            scales.begin_batch()
            scales.loss(loss, 1.0, [optimizer])
            trainer.strategy.backward(loss / len(batches), optimizer)
            scales.differentiated([optimizer])
            losses.append(loss.detach().float())
        total = torch.stack(losses).mean()
        return total

    module.optimizer_step(trainer.current_epoch, 0, module.optimizers(), closure)  # pyright: ignore[reportArgumentType]
    scales.stepped(optimizer)
    return float(torch.as_tensor(trainer.strategy.reduce(total, reduce_op="mean")))


def record_loss(trainer: Trainer, module: LightningModule, batch: Any, recording: Recording) -> None:
    """Compute the loss on a batch and its gradient, recorded; nothing is updated, and no gradient is left."""
    recording.begin(batch, 0, wanted=True)
    try:
        # The recorded calls are those of the eager module.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            loss = _loss(trainer.strategy.training_step(*_arguments(module, batch)))
            recording.loss(loss, 1.0)
            loss.backward()
            recording.differentiated(goes_on=False)
    finally:
        recording.end()
        for parameter in module.parameters():
            parameter.grad = None


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the first parameter group's; the others keep their ratio to it."""
    first = float(base_learning_rate(optimizer))
    for group in optimizer.param_groups:
        value = lr * float(group.get("initial_lr", group["lr"])) / first
        group["lr"] = group["lr"].fill_(value) if isinstance(group["lr"], Tensor) else value


def base_learning_rate(optimizer: Optimizer) -> float:
    """The first parameter group's, before any scheduler has changed it."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _mute(*args: Any, **kwargs: Any) -> None:
    """In place of `LightningModule.log`."""


def _loss(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(f"expected a loss from training_step, got {type(output).__name__}")
    return loss


def _arguments(module: LightningModule, batch: Any) -> tuple[Any, ...]:
    return (batch, 0) if len(inspect.signature(module.training_step).parameters) > 1 else (batch,)


@contextmanager
def _same_parameters(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    parameters = {id(p): p for p in [*module.parameters(), *held]}.values()
    saved = [(p, p.detach().clone(), p.grad) for p in parameters]
    for p, _, _ in saved:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value, grad in saved:
                p.copy_(value)
                p.grad = grad


@contextmanager
def _borrowed(*optimizers: Optimizer) -> Iterator[None]:
    """The optimizers work on copies of their state and groups, and nobody listens to their steps."""
    saved = [(optimizer, dict(optimizer.__dict__)) for optimizer in optimizers]
    for optimizer in optimizers:
        optimizer.state = defaultdict(dict, {p: copy.deepcopy(state) for p, state in optimizer.state.items()})
        optimizer.param_groups = [
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items()}
            for group in optimizer.param_groups
        ]
        optimizer._optimizer_step_pre_hooks = OrderedDict()
        optimizer._optimizer_step_post_hooks = OrderedDict()
    try:
        yield
    finally:
        for optimizer, attributes in saved:
            optimizer.__dict__.clear()
            optimizer.__dict__.update(attributes)


@contextmanager
def _same_scaler(trainer: Trainer) -> Iterator[None]:
    """The scaler of 16-bit training, which grows and shrinks with the steps."""
    plugin: Any = trainer.precision_plugin
    scaler = getattr(plugin, "scaler", None)
    if scaler is not None:
        plugin.scaler = copy.deepcopy(scaler)
    try:
        yield
    finally:
        if scaler is not None:
            plugin.scaler = scaler


def _callbacks(trainer: Trainer) -> Any:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set without being declared


def _set_callbacks(trainer: Trainer, callbacks: Any) -> None:
    trainer.callbacks = callbacks  # pyright: ignore[reportAttributeAccessIssue]
