"""The training's own loss, on samples of recorded steps, at the present parameters."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_topo._protection import gradient_hooks_set_aside, same_random_state, unchanged
from lightning_topo._tape import CannotReplay, Tape, TapeLoss
from lightning_topo._tape.draws import generators_kept
from lightning_topo._tape.names import all_names, clean_name
from lightning_topo._watch.messages import renewed_samples, stale_samples
from lightning_topo._watch.sample_age import SampleAge
from lightning_topo._watch.sharded_loss import ShardedTapeLoss, replay_obstacle
from lightning_topo._watch.training import Training
from lightning_topo.neurons._capture import sharding
from lightning_topo.neurons._sample_cuts import SampleCuts
from lightning_topo.neurons._units import units
from lightning_topo.phases import TopologyEvent
from lightning_topo.probes import BatchLoss, ProbeUnavailable
from lightning_topo.probes._probe import LossFn
from lightning_topo.stability._recognition import maximizes

ENOUGH_SAMPLES = 256
"""32 samples bias the sharpness upwards by 25-43 %, 256 by 0-4 %."""
ENOUGH_BATCHES = 12
"""As many as the median of `batch_sharpness_ratio` is of: that of a few small batches goes up and down."""
_MOST_TAPES = 64
_MOST_REFUSALS = 3
_REMEDY = "Give the probe a loss of its own: Sharpness(loss_fn=lambda module, batch: ...)."
_REMEDY_IN_SHARDS = (
    "Give the probe a loss of its own: StepEdge(loss_fn=lambda module, batch: ...), or under FSDP2 and tensor parallel "
    "Sharpness(loss_fn=...)."
)


class TrainingLoss:
    """Keeps the tapes of the newest recorded steps, as many as 256 samples take, and evaluates the loss on them.

    Nothing of the module's code runs, no data is drawn and no random state touched. Only a `loss_fn` that the user
    gives runs: on the batch of the last recorded step, with the module and all random states put back. Where the
    optimizers maximize, the loss is what falls: that of the training times -1.
    """

    def __init__(self, training: Training, seed: int) -> None:
        self._training, self._seed = training, seed
        self._steps: list[list[Tape]] = []
        self._tapes: list[Tape] = []
        self._batch: Any = None
        self._cuts = SampleCuts()
        self._age = SampleAge()
        self._was_evaluated = False
        self._is_sharded: bool = sharding(training.root) != "whole"
        self._step, self._n_refused, self._is_final = training.step, 0, False
        self.obstacle: str = "no step was recorded yet"

    @property
    def n_wanted(self) -> int:
        """How many more tapes like those at hand it takes to have enough samples; 0 where none can be had."""
        n_samples = sum(tape.n_samples for tape in self._tapes)
        if self.obstacle or n_samples == 0 or self._is_sharded:  # there a probe records the step that it measures
            return 0
        return math.ceil(max(ENOUGH_SAMPLES - n_samples, 0) * len(self._tapes) / n_samples)

    @property
    def n_batches_wanted(self) -> int:
        """How many more recorded steps it takes for what looks at single batches to see enough of them."""
        return min(self.n_wanted, max(ENOUGH_BATCHES - len(self._steps), 0))

    def keep(self, tapes: Sequence[Tape], batch: Any) -> None:
        """Keep the tapes of one more step, and let go what is no longer needed."""
        self._batch = batch
        if self._is_sharded:
            self.obstacle = replay_obstacle(tapes)
            self._tapes = [] if self.obstacle else [_light(tape, self._training) for tape in tapes]
            self._step = self._training.step + 1
            return
        usable, refused = _usable(tapes)
        self._age.note(self._training.step + 1, usable, [tape for tape in _taken(tapes) if _reason(tape)])
        if not usable:
            self.obstacle = self.obstacle if self._tapes else refused
            return
        self.obstacle = ""
        self._take(_enough([*self._of_present(), [_light(tape, self._training) for tape in usable]]))

    def _take(self, steps: list[list[Tape]]) -> None:
        self._steps, self._tapes = steps, [tape for step in steps for tape in step]
        self._cuts.forget_all_but(self._tapes)
        self._age.forget_all_but(self._tapes)

    def _of_present(self) -> list[list[Tape]]:
        """The steps that read parameters which the module still has: layers are pruned, replaced, grown."""
        module = self._training.module
        named = [*all_names(module.named_parameters), *all_names(module.named_buffers)]
        shapes = {clean_name(name): tensor.shape for name, tensor in named}
        return [step for step in self._steps if all(_reads(tape, shapes) for tape in step)]

    def take_event(self, step: int) -> TopologyEvent | None:
        """Return what has changed about the samples since a loss was last evaluated on them: one is stale, or none is.

        Once each: a recording that is refused again is not reported again until one was accepted.
        """
        was_evaluated, self._was_evaluated = self._was_evaluated, False
        stale, is_over = self._age.take_news() if was_evaluated else (None, False)
        if stale is None:
            return renewed_samples(step, self._training.epoch) if is_over else None
        return stale_samples(stale.step, stale.refused_at, stale.reason, _REMEDY, step, self._training.epoch)

    def release(self) -> None:
        """Let the tapes go, and the batch."""
        self.refuse("the training is over")
        self._steps, self._tapes, self._batch, self._cuts = [], [], None, SampleCuts()

    def refuse(self, obstacle: str) -> None:
        """Note the reason why nothing can be recorded."""
        self.obstacle, self._is_final = obstacle, True

    @contextmanager
    def __call__(self, loss_fn: LossFn | None) -> Iterator[Callable[[], Tensor]]:
        """Yields the loss as a zero-argument callable; of parameters in shards a `ShardedTapeLoss`, without a gradient.

        Raises `ProbeUnavailable` where the recorded steps cannot be replayed, and no `loss_fn` is given. A collective
        where parameters lie in shards: one refused step is a `CannotReplay` there, the third on end is no longer.
        """
        if loss_fn is None and self._is_sharded:
            with self._counting_refusals():
                yield self._of_shards()
            return
        parameters = list(self._training.module.parameters())
        if loss_fn is None:
            if self.obstacle:
                raise ProbeUnavailable(f"the training step cannot be replayed: {self.obstacle}.", _REMEDY)
            self._was_evaluated = True
            if len(present := self._of_present()) < len(self._steps):
                self._take(present)
            if not present:
                raise CannotReplay("the module has other parameters now than in the recorded steps")
            with generators_kept(*self._tapes), gradient_hooks_set_aside(parameters), torch.enable_grad():
                yield TapeLoss(self._training.module, tuple(self._tapes), cut=self._cuts)
            return
        with (
            same_random_state(self._seed),
            gradient_hooks_set_aside(parameters),
            unchanged(self._training.module),
            torch.compiler.set_stance("force_eager"),
            sdpa_kernel(SDPBackend.MATH),
            self._training.precision(),
            torch.enable_grad(),
        ):
            evaluate = partial(loss_fn, self._training.module)
            falls = partial(_negated, evaluate) if maximizes(self._training.optimizers) else evaluate
            yield BatchLoss(falls, self._batch)

    def _of_shards(self) -> ShardedTapeLoss:
        """The loss of the last recorded step, if all processes can replay it together."""
        loss, obstacle, order = None, self.obstacle, ""
        if not obstacle:
            try:
                loss = ShardedTapeLoss(self._training.root, self._tapes, self._training.ranks)
                order = loss.order
            except CannotReplay as error:
                obstacle = str(error)
        theirs = self._training.ranks.all("the order of shards", (obstacle, order))
        obstacle = next((obstacle for obstacle, _ in theirs if obstacle), "")
        if not obstacle and len({order for _, order in theirs}) > 1:
            obstacle = "the processes' steps read different parameters, or in another order"
        if not obstacle and self._step != self._training.step + 1:
            obstacle = "the step that is measured was not recorded"
        if obstacle or loss is None:
            raise CannotReplay(obstacle)
        return loss

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        """Say that there is no loss for good where nothing can be recorded, or several steps were refused on end."""
        try:
            yield
        except CannotReplay as error:
            self._n_refused += 1
            if self._is_final or self._n_refused >= _MOST_REFUSALS:
                raise ProbeUnavailable(f"the training step cannot be replayed: {error}.", _REMEDY_IN_SHARDS) from error
            raise
        self._n_refused = 0


def _usable(tapes: Sequence[Tape]) -> tuple[list[Tape], str]:
    """The tapes of a step whose losses can be evaluated, and why others cannot.

    Of losses that one parameter is moved by, all or none: what is left of them would be another function.
    """
    taken = _taken(tapes)
    reasons = [_reason(tape) for tape in taken]
    lost = [tape.owners or () for tape, reason in zip(taken, reasons, strict=True) if reason]
    gone = frozenset[str]().union(*lost)
    usable = [
        tape for tape, reason in zip(taken, reasons, strict=True) if not reason and gone.isdisjoint(tape.owners or ())
    ]
    nothing = "no update has moved a parameter by the loss" if tapes else "the step had no loss to follow"
    return usable, next(filter(None, reasons), nothing)


def _taken(tapes: Sequence[Tape]) -> list[Tape]:
    """The tapes of losses by which an update may have moved a parameter."""
    return [tape for tape in tapes if tape.owners is None or tape.owners]


def _reason(tape: Tape) -> str:
    return tape.obstacle or tape.gradient_obstacle


def _enough(steps: Sequence[list[Tape]]) -> list[list[Tape]]:
    """The newest steps that hold enough samples of each loss, and the last one whole."""
    kept: list[list[Tape]] = []
    held: Counter[Any] = Counter()
    needed: dict[Any, int] = {}
    for step in reversed(steps):
        losses = Counter((tape.owners, tape.place) for tape in step)
        needed = {loss: ENOUGH_SAMPLES * n for loss, n in losses.items()} | needed
        is_wanted = any(held[loss] < needed[loss] for loss in losses)
        if kept and (not is_wanted or sum(map(len, kept)) + len(step) > _MOST_TAPES):
            continue
        kept.append(step)
        for tape in step:
            held[tape.owners, tape.place] += tape.n_samples
    return kept[::-1]


def _reads(tape: Tape, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether a tape finds what it reads among parameters and buffers of these names and shapes."""
    read = ((names, tape.layouts[slot].shape) for slot, names in tape.names.items() if tape.params.intersection(names))
    return all(any(shapes.get(name) == shape for name in names) for names, shape in read)


def _light(tape: Tape, training: Training) -> Tape:
    """The tape without the values that parameters had: they are taken where they stand; of a loss that falls."""
    present = {clean_name(name) for name, _ in all_names(training.module.named_parameters)}
    present.update(name for unit in units(training.root) for name in unit.names)
    sign = -1.0 if maximizes(training.optimizers) else 1.0
    return tape.replaced(
        scale=sign * tape.scale,
        values={slot: value for slot, value in tape.values.items() if not present.intersection(tape.names[slot])},
    )


def _negated(evaluate: Callable[[Any], Tensor], batch: Any) -> Tensor:
    return -evaluate(batch)
