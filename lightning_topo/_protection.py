"""Running a module's own code without leaving a trace in it, whatever happens while it runs."""

import gc
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import IOBase
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_OBJECTS = 100_000
"""Remember at most this many plain objects that a module holds."""
_SHORT = 10_000
"""A longer container of a data set is its data."""


_DRAWING = (
    "torch.utils.data.dataset",
    "torch.utils.data.sampler",
    "torch.utils.data.distributed",
    "lightning.pytorch.overrides.distributed",
)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the module afterwards, whatever happens inside: buffers, metrics, counters, queues, hooks.

    Attributes of the module and of everything below it are put back. Tensors, arrays, containers and plain objects that
    were changed in place get their contents back, however deep they lie; generators of random numbers get their state
    back. Parameters are left alone: nothing here may step.
    """
    memory = _Memory()
    for part in module.modules():
        memory.object(part)
    buffers = [_tensor(buffer) for buffer in module.buffers()]
    try:
        yield
    finally:
        memory.restore()
        for restore in buffers:
            restore()


@contextmanager
def same_draws(*sources: Any) -> Iterator[None]:
    """Loaders, samplers and data sets draw afterwards as if nothing had been drawn inside.

    Attributes, short containers and generators of random numbers are put back, however deep they lie; tensors and
    arrays, which are the data, are left alone.
    """
    memory = _Memory(of_data=True)
    for source in sources:
        memory.object(source)
    try:
        yield
    finally:
        memory.restore()


@contextmanager
def same_random_state(seed: int) -> Iterator[None]:
    """Seed all global random states with `seed`, and restore them afterwards, also if the body raises.

    >>> before = torch.random.get_rng_state()
    >>> with same_random_state(0):
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.random.get_rng_state())
    True
    """
    with kept_random_state():
        torch.manual_seed(seed)
        yield


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore all global random states afterwards, also if the body raises: of Python, NumPy, and torch's devices."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that user code draws from
    tensors = torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    metal = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002 - restores what was read above
        torch.random.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if metal is not None:
            torch.mps.set_rng_state(metal)


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause Python's garbage collection: many short-lived objects would make it scan all objects there are.

    With large packages imported, one such scan takes longer than a step.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Memory:
    """What plain objects hold, and how to give it back to them in place."""

    def __init__(self, *, of_data: bool = False) -> None:
        self._of_data = of_data
        self._seen: set[int] = set()
        self._restorers: list[tuple[Any, Callable[[], None]]] = []
        self._lost: list[str] = []
        self._alive: list[Any] = []  # an address is nobody else's as long as its owner lives

    def restore(self) -> None:
        """Give everything back, whatever fails at it, and say of what it could not be done."""
        lost = list(self._lost)
        for owner, restore in self._restorers:
            try:
                restore()
            except Exception as error:
                lost.append(f"{type(owner).__qualname__} ({type(error).__name__}: {error})")
        if lost:
            warnings.warn(f"lightning_topo could not put back as it was: {', '.join(lost)}.", stacklevel=2)

    def object(self, owner: Any) -> None:
        """Remember the attributes of an object, and what they hold."""
        if self._knows(owner):
            return
        self._attributes(owner)

    def _attributes(self, owner: Any) -> None:
        if not hasattr(owner, "__dict__"):
            return
        attributes = dict(owner.__dict__)
        self._restorers.append((owner, partial(_refill, owner.__dict__, attributes)))
        for value in attributes.values():
            self._value(value)

    def _value(self, value: Any) -> None:
        if isinstance(value, nn.Module | type | ModuleType | FunctionType | MethodType | BuiltinFunctionType):
            return
        if isinstance(value, torch.Generator):
            self._generator(value, partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._generator(value, partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            state = value.bit_generator.state
            self._generator(value, partial(setattr, value.bit_generator, "state", state))
        elif isinstance(value, np.random.RandomState):
            self._generator(value, partial(value.set_state, value.get_state()))
        elif self._of_data and _is_data(value):
            return
        elif isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and not self._knows(value):
                self._restorers.append((value, _tensor(value)))
        elif isinstance(value, np.ndarray):
            if not self._knows(value) and value.flags.writeable:
                self._restorers.append((value, partial(_copy_array, value, value.copy())))
        elif isinstance(value, list | dict | set | deque):
            if not self._knows(value):
                items = _copy(value)
                self._restorers.append((value, partial(_refill, value, items)))
                for part in list(items.values() if isinstance(items, dict) else items):
                    self._value(part)
                self._attributes(value)
        elif isinstance(value, tuple):
            for part in value:
                self._value(part)
        elif hasattr(value, "__dict__"):
            if not _is_of_a_framework(value) or self._draws(value):
                self.object(value)
        elif isinstance(value, Iterator) and not isinstance(value, IOBase) and not self._knows(value):
            self._lost.append(f"what {type(value).__qualname__} has handed out")  # and nothing shows where it stands

    def _generator(self, value: Any, restore: Callable[..., Any]) -> None:
        if not self._knows(value):
            self._restorers.append((value, restore))

    def _draws(self, value: Any) -> bool:
        """Whether it is a data set or a sampler of a framework's; a loader's iterator has workers that are at work."""
        return self._of_data and type(value).__module__.startswith(_DRAWING)

    def _knows(self, value: Any) -> bool:
        if id(value) in self._seen or len(self._seen) >= MOST_OBJECTS:
            return True
        self._seen.add(id(value))
        self._alive.append(value)
        return False


def _is_data(value: Any) -> bool:
    """Whether a value is what a data set holds, and not what it remembers."""
    return isinstance(value, Tensor | np.ndarray) or (
        isinstance(value, list | dict | set | deque) and len(value) > _SHORT
    )


def _is_of_a_framework(value: Any) -> bool:
    """Whether an object belongs to Lightning or torch: trainers, loops and optimizers have books of their own."""
    return type(value).__module__.startswith(("lightning.", "pytorch_lightning.", "torch.", "lightning_topo."))


def _tensor(tensor: Tensor) -> Callable[[], None]:
    """A function that gives a tensor its present contents back."""
    if tensor.is_inference() or tensor.is_meta:  # cannot be changed in place, or has no contents
        return lambda: None
    if tensor.layout is not torch.strided:
        return partial(_restore_sparse, tensor, tensor.detach().clone(), tensor._version)
    return partial(_restore, tensor, tensor.detach().clone())


def _restore(tensor: Tensor, copy: Tensor) -> None:
    # Not by the version counter: kernels such as batch_norm's write without counting.
    if tensor.shape != copy.shape or not torch.equal(tensor, copy):
        with torch.no_grad():
            tensor.resize_(copy.shape).copy_(copy)


def _restore_sparse(tensor: Tensor, copy: Tensor, version: int) -> None:
    if tensor._version != version:  # sparse tensors cannot be compared
        with torch.no_grad():
            tensor.copy_(copy)


def _copy_array(array: np.ndarray, copy: np.ndarray) -> None:
    array[...] = copy


def _copy(container: Any) -> Any:
    """What a container holds; one of the user's may copy itself in its own way, or not at all."""
    plain: Any = next(base for base in (list, dict, set, deque) if isinstance(container, base))
    return plain(container)


def _refill(container: Any, items: Any) -> None:
    """Let a container hold these items again, in this order; past what a class of the user's does beside it."""
    plain: Any = next(base for base in (OrderedDict, list, dict, set, deque) if isinstance(container, base))
    plain.clear(container)
    (plain.extend if isinstance(container, list | deque) else plain.update)(container, items)


@contextmanager
def gradient_hooks_set_aside(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run the body without the hooks that parameters have for their gradients: a measurement's are none of theirs.

    Afterwards each parameter has the hooks that it had: a handle that is kept removes its hook, as before.

    >>> p, seen = nn.Parameter(torch.ones(1)), []
    >>> handle = p.register_hook(seen.append)
    >>> with gradient_hooks_set_aside([p]):
    ...     _ = torch.autograd.grad((p * p).sum(), p)
    >>> len(seen), len(p._backward_hooks)
    (0, 1)
    """
    found = [hooks for p in parameters for name in _HOOKS if (hooks := getattr(p, name, None))]
    # Autograd looks into these very dictionaries: one that is removed or added meanwhile stays it, in its order.
    kept = [(hooks, key, hook) for hooks in found for key, hook in hooks.items()]
    try:
        for hooks, key, _ in kept:
            hooks[key] = _rests
        yield
    finally:
        for hooks, key, hook in kept:
            if hooks.get(key) is _rests:
                hooks[key] = hook


def _rests(tensor: Tensor) -> None:
    """Stand in for a hook that is set aside."""


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
