"""Copies of parameters that are seldom read: where there is room for them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Resting = Callable[[torch.device, int], torch.device]
"""Where copies of so many bytes of a device's tensors are kept."""


class RestingCopies(Mapping[str, Tensor]):
    """Copies of the parameters `names`, kept where `resting` says and brought back when they are read."""

    def __init__(self, parameters: Mapping[str, Tensor], names: Sequence[str], resting: Resting) -> None:
        self._devices = {name: parameters[name].device for name in names}
        sizes: dict[torch.device, int] = defaultdict(int)
        for name, device in self._devices.items():
            sizes[device] += parameters[name].nbytes
        homes = {device: resting(device, n_bytes) for device, n_bytes in sizes.items()}
        self._copies = {
            name: torch.empty_like(parameters[name], device=homes[device], requires_grad=False)
            for name, device in self._devices.items()
        }
        self.take(parameters)

    @torch.no_grad()
    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy the values that these parameters have now."""
        present = [parameters[name].detach() for name in self._copies]
        torch._foreach_copy_(list(self._copies.values()), present)  # pyright: ignore[reportPrivateImportUsage]

    def __getitem__(self, name: str) -> Tensor:
        return self._copies[name].to(self._devices[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, name: object) -> bool:
        return name in self._copies
