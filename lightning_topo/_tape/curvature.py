"""The loss of recorded steps as a function of the present parameters."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_topo._tape.footprint import graph_bytes
from lightning_topo._tape.names import named_tensors
from lightning_topo._tape.program import Tape
from lightning_topo._tape.replay import CannotReplay, replay


def tape_loss(
    tape: Tape, named: Mapping[str, Tensor], *, precision: torch.dtype | None = torch.float32
) -> Float[Tensor, ""]:
    """The module's own loss (scale undone) on the samples of the recorded step, at other parameters.

    Differentiable twice: attention and recurrent kernels go by their formulas, and what the step cast to half
    precision is computed in `precision`. Random draws are those of the step. `named` may lack names, which then are as
    recorded.

    Raises `CannotReplay`, also where the replay's loss or gradient is not the step's.

    >>> from lightning_topo._tape import StepRecorder
    >>> model, recorder = nn.Linear(2, 1), StepRecorder()
    >>> recorder.begin(model)
    >>> recorder.loss(model(torch.ones(3, 2)).square().mean() * 8, scale=8.0)
    >>> [tape] = recorder.end()
    >>> zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    >>> tape_loss(tape, zeros | {"bias": torch.tensor([3.0])}).item()
    9.0
    """
    if tape.gradient_obstacle:
        raise CannotReplay(tape.gradient_obstacle)
    [loss] = replay(tape, named, precision=precision)
    return loss.reshape(()) / tape.scale


@runtime_checkable
class Cut(Protocol):
    """Parts of a tape, of at most `size` samples each, with weights: their losses sum up to the tape's."""

    def __call__(
        self, tape: Tape, size: int, named: Mapping[str, Tensor], precision: torch.dtype | None
    ) -> Sequence[tuple[float, Tape]]: ...


@dataclass(frozen=True, slots=True)
class TapeLoss:
    """The mean loss over the samples of several tapes, at the present parameters of a module: a zero-argument callable.

    Tapes are weighted by their numbers of samples, or by `weights`. Losses that one update takes together add up, and
    so do those of different parameters, as a GAN's: each is a function of those alone that it moves. `parts`, `pieces`
    and `within` give the same loss in parts, for what has to go without the memory of all together. Without `cut` a
    tape is a part, however large.
    """

    module: nn.Module
    tapes: Sequence[Tape]
    precision: torch.dtype | None = torch.float32
    cut: Cut | None = None
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.tapes:
            raise ValueError("expected at least one tape, got none")
        if refused := next((o for tape in self.tapes if (o := tape.obstacle or tape.gradient_obstacle)), ""):
            raise ValueError(f"expected tapes that can be replayed, got one that cannot: {refused}")

    @property
    def n_samples(self) -> int:
        """How many samples the tapes hold together."""
        return sum(tape.n_samples for tape in self.tapes)

    def __call__(self) -> Float[Tensor, ""]:
        """The loss on all samples."""
        named = named_tensors(self.module)
        weighted = [
            weight * tape_loss(tape, self._moved_by(tape, named), precision=self.precision)
            for weight, tape in self._weighted()
        ]
        return torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]

    def parts(self) -> tuple[tuple[float, "TapeLoss"], ...]:
        """The loss on each tape, with its weight."""
        return tuple(self._part([each]) for each in self._weighted())

    def pieces(self, size: int) -> tuple[tuple[float, "TapeLoss"], ...]:
        """The loss on at most `size` samples at a time, as far as tapes can be cut, with the weights of the parts."""
        return tuple(self._part([piece]) for each in self._weighted() for piece in self._cut(*each, size))

    def within(self, memory: int) -> tuple[tuple[float, "TapeLoss"], ...]:
        """The loss in parts whose gradients' graphs take about `memory` bytes each, as far as tapes can be cut.

        Small tapes go together, as many as fit.
        """
        parts: list[tuple[float, TapeLoss]] = []
        together: list[tuple[float, Tape]] = []
        taken = 0
        for weight, tape in self._weighted():
            needed = graph_bytes(tape, self.precision)
            if together and taken + needed > memory:
                parts.append(self._part(together))
                together, taken = [], 0
            if needed > memory:
                parts += map(
                    self._part, [[piece] for piece in self._cut(weight, tape, tape.n_samples * memory // needed)]
                )
            else:
                together.append((weight, tape))
                taken += needed
        return (*parts, self._part(together)) if together else tuple(parts)

    def _weighted(self) -> Sequence[tuple[float, Tape]]:
        families = [(tape.owners if self._has_owners else None, tape.place) for tape in self.tapes]
        sizes: dict[Any, int] = defaultdict(int)
        for family, tape in zip(families, self.tapes, strict=True):
            sizes[family] += tape.n_samples
        weights = self.weights or [
            tape.n_samples / sizes[family] for family, tape in zip(families, self.tapes, strict=True)
        ]
        return list(zip(weights, self.tapes, strict=True))

    @property
    def _has_owners(self) -> bool:
        return all(tape.owners is not None for tape in self.tapes)

    def _moved_by(self, tape: Tape, named: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The parameters as this loss is a function of them: those that it does not move are constants."""
        owners = tape.owners
        if owners is None or not self._has_owners:
            return named
        return {name: tensor if name in owners else tensor.detach() for name, tensor in named.items()}

    def _cut(self, weight: float, tape: Tape, size: int) -> Sequence[tuple[float, Tape]]:
        if self.cut is None:
            return [(weight, tape)]
        named = self._moved_by(tape, named_tensors(self.module))
        pieces = self.cut(tape, max(size, 1), named, self.precision)
        return [(weight * share, piece) for share, piece in pieces]

    def _part(self, weighted: Sequence[tuple[float, Tape]]) -> "tuple[float, TapeLoss]":
        total = sum(weight for weight, _ in weighted)
        weights = tuple(weight / total for weight, _ in weighted)
        return total, replace(self, tapes=tuple(tape for _, tape in weighted), weights=weights)


def enough_samples(tapes: Sequence[Tape], wanted: int = 256) -> tuple[Tape, ...]:
    """The newest tapes that together hold `wanted` samples, or all.

    32 samples bias the largest eigenvalue up by 25-43 %, 256 by 0-4 %.
    """
    chosen: list[Tape] = []
    for tape in reversed(tapes):
        if sum(other.n_samples for other in chosen) >= wanted:
            break
        chosen.append(tape)
    return tuple(reversed(chosen))
