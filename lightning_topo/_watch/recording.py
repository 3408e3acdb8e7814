"""Recording steps of the training as they run."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_topo._tape import StepRecorder, Tape, accepted, compiled_reason, outside_modes
from lightning_topo._tape.foreign import is_plain
from lightning_topo._tape.held import held_storages
from lightning_topo._tape.names import all_names, clean_name, named_tensors
from lightning_topo._watch.loss_multiple import LossMultiple
from lightning_topo._watch.owners import Owners
from lightning_topo._watch.training import Training
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo.neurons._capture import local_shards, sharding
from lightning_topo.neurons._units import Unit, units
from lightning_topo.stability._layout import local

RECORD_EVERY = 4
"""Record every this many steps before a probe evaluates the loss, until there are enough samples."""

MOST_LOSSES = 16
"""Losses of one step that are recorded: reinforcement learning may take hundreds of updates from one batch."""
MOST_COPIES = 4
"""Copies of all parameters that a recorded step may hold; each update of them makes one."""

SMALL = 2**25
"""Bytes of copies that nobody notices."""

_PARTS = "activations of tensor parallel are spread over processes"
"""Why a step that was recorded in parts shows no neurons."""


class Recording:
    """Records steps as they run, one tape for each loss; a module with compiled parts is never recorded.

    `obstacle` says why nothing can be recorded; empty where it can, and `obstacle_to_neurons` why what is recorded
    shows none. `training_loss` is given what it wants of the recorded steps; None where no probe evaluates losses.
    `steps_until` returns in how many steps one does, and `steps_until_batches` in how many one looks at single batches;
    None if that is not known. `runs_eagerly` says that compiled parts will not run compiled.
    """

    def __init__(
        self,
        training: Training,
        training_loss: TrainingLoss | None,
        steps_until: Callable[[int], int | None] = lambda step: 0,
        steps_until_batches: Callable[[int], int | None] = lambda step: None,
        *,
        runs_eagerly: bool = False,
    ) -> None:
        self._training, self._training_loss = training, training_loss
        self._steps_until, self._steps_until_batches = steps_until, steps_until_batches
        self._batch: Any = None
        self._is_kept = self._is_open = self._goes_on = False
        self._recorder = StepRecorder()
        self._judged: list[Tape | None] = []
        self._owners = Owners()
        self._updating: Sequence[str] = ()
        self._noted: dict[str, Tensor] | None = None
        self._multiple, self._was_differentiated = LossMultiple(), False
        self._without_gradient: frozenset[str] = frozenset()
        self._tapes: list[Tape] = []
        self._handles: list[RemovableHandle] = []
        self._most_bytes = SMALL
        self._keeps_values = True
        self._units: list[Unit] = []
        self._constants = held_storages(training.module)
        kind = sharding(training.root)
        self._is_sharded = kind != "whole"
        compiled = None if runs_eagerly else compiled_reason(training.module)
        self.obstacle: str = compiled or ""
        self.obstacle_to_neurons: str = self.obstacle or (_PARTS if kind == "tensor_parallel" else "")
        self._opens = kind == "tensor_parallel"

    def begin(
        self,
        batch: Any,
        step: int,
        *,
        wanted: bool,
        for_neurons: bool = False,
        copies: Callable[[], Mapping[int, Tensor]] = dict,
    ) -> None:
        """Record the step that begins if its tapes are `wanted`, or if more samples of the loss are, soon.

        `for_neurons` says that neurons are to be found on them. `copies` gives those of parameters that others hold
        already, by their ids.
        """
        if not wanted and not self._wants_samples(step):
            return
        self._tapes, self._judged, self._noted, self._owners = [], [], None, Owners()
        self._batch, self._is_kept, self._is_open, self._goes_on = batch, True, True, False
        if self.obstacle:
            return
        module = self._training.module
        plain = (tensor for tensor in named_tensors(module).values() if is_plain(tensor))
        one = sum(tensor.nbytes for tensor in plain if tensor.layout is torch.strided)
        self._most_bytes = max(SMALL, MOST_COPIES * one)
        if self._is_sharded:
            # Only who finds neurons keeps the whole parameters.
            self._begin_in_shards(keeps_values=for_neurons and not self._opens and self._training.ranks.rank == 0)
        else:
            # What the module held before it had any data, and does not come with these.
            constants = self._constants & held_storages(module, batch) if for_neurons else frozenset[int]()
            self._recorder.begin(module, copies(), held=constants)

    @torch.no_grad()
    def _begin_in_shards(self, *, keeps_values: bool) -> None:
        """Record a step whose parameters get their names where they are gathered."""
        module, self._keeps_values = self._training.module, keeps_values
        self._units = units(self._training.root)
        buffers = named_tensors(dict(all_names(module.named_buffers)))
        every = named_tensors(module)
        self._recorder.begin(
            {name: local(one) for name, one in every.items() if name in buffers or self._is_left_whole(name, one)},
            name_gathered=self._name_gathered,
            shards=local_shards(self._training.root),
            opens=self._opens,
        )
        if self._opens:
            for name, one in every.items():
                if name not in buffers and not is_plain(one):
                    self._recorder.name(name, local(one), gathered=True, keep_value=False)
        self._name_gathered()  # units that are gathered by now, and what they leave whole
        for unit in self._units:
            self._handles += unit.around_gathering(self._recorder.gather_begins, partial(self._gather_ends, unit))

    def _is_left_whole(self, name: str, parameter: Tensor) -> bool:
        is_flat = hasattr(parameter, "_is_flat_param")
        return is_plain(parameter) and not is_flat and not any(unit.holds(name) for unit in self._units)

    def _wants_samples(self, step: int) -> bool:
        loss = self._training_loss
        if loss is None or step % RECORD_EVERY:
            return False
        wanted = (self._steps_until, loss.n_wanted), (self._steps_until_batches, loss.n_batches_wanted)
        return any(n and (left := until(step)) is not None and left <= RECORD_EVERY * n for until, n in wanted)

    def loss(self, loss: Tensor, scale: float, *, in_engine: bool = False) -> None:
        """A loss is about to be differentiated: it ends a tape.

        `in_engine` where autograd itself will say that the gradient is there: a mode that is entered by then is gone
        when the backward pass returns, so it is not left before.
        """
        if not self._recorder.is_active or not self._is_open:  # a closure may be evaluated again
            return
        self._is_open = False
        self._recorder.pause()
        self._judge()
        parameters = self._training.module.named_parameters()
        self._without_gradient = frozenset(name for name, p in parameters if p.grad is None or not p.grad.any())
        self._judged.append(None)
        every = self.parameters()
        cleared = {id(p) for name, p in self._training.module.named_parameters() if name in self._without_gradient}
        self._owners.before_loss(every, [name for name, p in every.items() if id(p) in cleared])
        self._recorder.loss(loss, scale=scale)
        self._was_differentiated = False
        self._multiple.listen(loss)
        if not in_engine:
            self._recorder.leave()

    def differentiated(self, *, goes_on: bool, is_stepping: bool = False, in_engine: bool = False) -> None:
        """The gradient is there; where the step goes on, so does the recording.

        Not before the update is over where an optimizer `is_stepping`: it may evaluate its closure again, at parameters
        that it has moved and will move again. `in_engine` where autograd itself calls: it cannot be asked for another
        gradient then.
        """
        if not self._recorder.is_active:
            return
        if self._judged and not self._is_open:
            self._owners.after_loss(self.parameters())
            self._was_differentiated = True
        if in_engine:
            self._noted = {name: gradient.clone() for name, gradient in self._gradients().items()}
        else:
            self._judge()
        self._goes_on = goes_on
        if not goes_on and not in_engine:
            self._recorder.leave()
        elif goes_on and not is_stepping:
            self._resume(in_engine=in_engine)

    def update_begins(self, names: Sequence[str] = (), *, runs_closure: bool) -> None:
        """An optimizer begins its update of these, which is no part of any loss; a closure's loss is recorded.

        Without names where a closure is over, and the update itself begins.
        """
        self._updating = names or self._updating
        if self._recorder.is_active and not runs_closure:
            self._recorder.pause()
            self._judge()

    def update_ends(self) -> None:
        """An optimizer has moved parameters; where the step goes on, so does the recording."""
        self._owners.moved(self._updating)
        # An update may come before the first loss, by what the batch before has left.
        if self._recorder.is_active and (self._goes_on or not self._judged):
            self._resume()

    def _resume(self, *, in_engine: bool = False) -> None:
        if len(self._judged) >= MOST_LOSSES or self._recorder.copied_bytes >= self._most_bytes:
            # Autograd's engine puts the modes back that it found: one that is left inside is there again afterwards.
            self._recorder.pause() if in_engine else self._recorder.leave()
            return
        self._recorder.resume()
        self._is_open = True

    def end(self) -> list[Tape]:
        """The accepted tapes of the step, one for each loss; also if the step failed."""
        self._multiple.take()
        while self._handles:
            self._handles.pop().remove()
        if self._recorder.is_active:
            tapes = self._recorder.end()
            self._tapes = [known or self._accepted(tape) for tape, known in zip(tapes, self._judged, strict=True)]
            self._judged = []
            self._tapes = self._owners.noted(self._tapes, self.parameters())
        if self._is_kept and self._training_loss is not None:
            self._training_loss.keep(self._tapes, self._batch)
            if self.obstacle:
                self._training_loss.refuse(self.obstacle)
        self._batch, self._is_kept = None, False
        return self._tapes

    def so_far(self) -> list[Tape]:
        """The tapes of the step up to now, while it still runs."""
        if not self._recorder.is_active:
            return self._tapes
        judged = zip(self._recorder.so_far(), self._judged, strict=True)
        return [known or self._accepted(tape) for tape, known in judged]

    def forget(self) -> None:
        """Let the tapes go: they hold copies of all parameters."""
        self._tapes = []

    def _gather_ends(self, unit: Unit, are_whole: bool) -> None:
        self._recorder.gather_ends()
        if are_whole:
            self._name(unit)

    def _name_gathered(self) -> None:
        """Name what is whole by now of the units: one may be read before it is called, as part of one that was."""
        for unit in self._units:
            self._name(unit)

    def _name(self, unit: Unit) -> None:
        for name, parameter in unit.whole():
            if is_plain(parameter):
                self._recorder.name(name, parameter, gathered=True, keep_value=self._keeps_values)

    def _judge(self) -> None:
        """Accept or refuse the tape of the last loss by its gradient.

        Before the update: what the optimizer keeps, and what else a step takes, is not in memory yet.
        """
        if not self._judged or self._judged[-1] is not None:
            return
        gradients = self._gradients() if self._noted is None else self._noted
        self._noted = None
        # Processes average their gradients, and of shards this one has its own part.
        alone = self._training.ranks.size == 1 and not self._is_sharded
        # Later, gradients may be clipped: that is measured apart.
        multiple = self._multiple.take() if self._was_differentiated else None
        self._judged[-1] = self._accepted(self._recorder.so_far()[-1], gradients if alone else None, multiple)

    def _accepted(
        self, tape: Tape, gradients: Mapping[str, Tensor] | None = None, multiple: float | None = None
    ) -> Tape:
        # In shards the loss is compared when it is first evaluated: until then nobody has the values.
        return _accepted(tape, gradients, multiple) if self._keeps_values else tape

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by each of their clean names."""
        return {clean_name(name): p for name, p in all_names(self._training.module.named_parameters)}

    def _gradients(self) -> dict[str, Tensor]:
        """The gradient that the last loss has made, of parameters that had none before."""
        return {
            name: p.grad.detach()
            for name, p in self._training.module.named_parameters()
            if name in self._without_gradient and p.grad is not None
        }


def _accepted(tape: Tape, gradients: Mapping[str, Tensor] | None = None, multiple: float | None = None) -> Tape:
    """The tape, with an obstacle where it cannot be replayed, whatever fails."""
    try:
        with outside_modes():
            return accepted(tape, gradients, multiple=multiple)
    except Exception as error:
        return tape.replaced(obstacle=f"the replay failed ({type(error).__name__}: {error})")
