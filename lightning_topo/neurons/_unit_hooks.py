"""Hooks around a unit's own gathering of its parameters."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.utils.hooks import RemovableHandle


class ForwardCalls:
    """The hooks of one FSDP1 unit: a module that calls itself, as a LightningModule does, gathers nothing by that."""

    def __init__(self, begins: Callable[[], None], ends: Callable[[bool], None]) -> None:
        self._begins, self._ends, self._depth = begins, ends, 0

    def gather(self, module: nn.Module, args: Any) -> None:
        self._depth = 0
        self._begins()

    def enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._ends(True)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._begins()

    def freed(self, module: nn.Module, args: Any, output: Any) -> None:
        self._ends(False)


def around_hooks(module: nn.Module, begins: Callable[[], None], ends: Callable[[bool], None]) -> list[RemovableHandle]:
    """Call `begins` and `ends` around those of a module's hooks that gather before its forward pass."""
    hooks = cast(Any, module._forward_pre_hooks)  # an OrderedDict
    handles = [
        module.register_forward_pre_hook(lambda module, args: begins(), prepend=True),
        module.register_forward_pre_hook(lambda module, args: ends(True)),
    ]
    gathering = [key for key, hook in hooks.items() if is_hook_of_sharding(hook)]
    own = [handle.id for handle in handles]
    order = list(hooks)
    for key in order[order.index(gathering[-1]) + 1 if gathering else len(order) :]:
        if key not in own:
            hooks.move_to_end(key)
    return handles


def is_hook_of_sharding(hook: Any) -> bool:
    """Whether a hook was registered by torch's or DeepSpeed's sharding."""
    function = getattr(hook, "func", hook)
    origin = getattr(function, "__module__", None) or ""
    return origin.startswith(("torch.distributed", "deepspeed"))
