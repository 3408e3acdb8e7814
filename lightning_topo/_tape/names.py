"""The names of a module's tensors, as the bare module gives them."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def clean_name(name: str) -> str:
    """The parameter's name without what torch.compile, FSDP and activation checkpointing put into it.

    >>> clean_name("net._orig_mod.0.weight")
    'net.0.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def all_names(named: Callable[..., Iterable[tuple[str, Tensor]]]) -> Iterable[tuple[str, Tensor]]:
    """What `module.named_parameters` or `named_buffers` gives, shared tensors under each of their names.

    Where a class of the user's has it without that option (as torchrl's losses), under one name.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> [name for name, _ in all_names(nn.Sequential(linear, linear).named_parameters)]
    ['0.weight', '1.weight']
    """
    try:
        return named(remove_duplicate=False)
    except TypeError:
        return named()


def named_tensors(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by clean name, shared ones under each of their names; lazy ones have no values yet.

    >>> sorted(named_tensors(nn.BatchNorm1d(2)))
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    if isinstance(source, Mapping):
        return {name: tensor for name, tensor in source.items() if not is_lazy(tensor)}
    found: dict[str, Tensor] = {}
    for pairs in (all_names(source.named_parameters), all_names(source.named_buffers)):
        found |= {clean_name(name): tensor for name, tensor in pairs if not is_lazy(tensor)}
    return found
