"""Watch one real training step and write down what it computes."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo._tape.call_log import CallLog, tensors_and_none
from lightning_topo._tape.closing import Recorded, closed_tape, empty_tape
from lightning_topo._tape.foreign import is_foreign, on_this_process, opened_classes
from lightning_topo._tape.gradient_trail import GradientTrail
from lightning_topo._tape.held import held_storages
from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.mode import Observer
from lightning_topo._tape.names import all_names, named_tensors
from lightning_topo._tape.program import Tape, leaves, write_positions, written_by

log: logging.Logger = logging.getLogger(__name__)

MAX_CALLS = 20_000


class StepRecorder:
    """Writes down the operators of a training step; the training receives the very tensors it would have had.

    `begin` before the step, `loss` where a backward pass is about to begin (in `on_before_backward`), `resume` where
    it is over and the step goes on (manual optimization), `pause` and `resume` around an update, `end` after the step,
    whatever has happened in it. One dispatch mode is active from `begin` to `end`; from each `loss` on it lets
    everything pass unseen, and `leave` takes it away until `resume`. A step of more than `max_calls` operators is given
    up. Nothing here raises because of what the step does: a tape that cannot be used says why in its `obstacle`.

    >>> model, x = nn.Linear(2, 1), torch.ones(3, 2)
    >>> recorder = StepRecorder()
    >>> recorder.begin(model)
    >>> loss = model(x).square().mean()
    >>> recorder.loss(loss)
    >>> loss.backward()
    >>> [tape] = recorder.end()
    >>> len(tape.calls), tape.obstacle, tape.n_samples
    (4, '', 3)
    """

    def __init__(self, *, max_calls: int = MAX_CALLS) -> None:
        self.max_calls = max_calls
        self.obstacle = ""
        self._tapes: list[Tape] = []
        self._mode: Observer | None = None
        self._listening = self._gathers = self._is_filled = False
        self._opens = False
        self._n_gatherings = 0

    @property
    def is_active(self) -> bool:
        """Whether it has begun, and not ended yet."""
        return self._mode is not None

    @property
    def copied_bytes(self) -> int:
        """The size of all copies of parameters and buffers: one of each, and another whenever it was moved."""
        return self._log.memory.copied_bytes

    def begin(
        self,
        tensors: nn.Module | Mapping[str, Tensor],
        copies: Mapping[int, Tensor] | None = None,
        *,
        name_gathered: Callable[[], None] | None = None,
        shards: Iterable[Tensor] = (),
        opens: bool = False,
        held: frozenset[int] = frozenset(),
    ) -> None:
        """Enter the mode. `tensors` are the module, or parameters and buffers by name.

        `copies` of some of them, by their ids, are taken for the tapes' own: they must not change. `name_gathered` is
        called where the step reads a parameter without a name, and gives it one; else the step is given up. So is a
        step that reads `shards` of parameters themselves. If it `opens` DTensors, what is computed with their local
        parts is recorded, and a replay issues the collectives between them again. `held` are storages of tensors that
        are constants of the module, as `held_storages` gives them, if they still are when the step is over.

        Raises RuntimeError where the recorder has begun already.
        """
        if self._mode is not None:
            raise RuntimeError("expected a recorder that is not recording, got one that is: call end() first")
        self.obstacle = ""
        self._tapes, self._gathers = [], False
        self._source = tensors
        self._shards = frozenset(shard.untyped_storage()._cdata for shard in shards)
        self._log = CallLog(MemoryMap(copies), opens=opens, name_gathered=name_gathered)
        self._trail = GradientTrail()
        self._buffers = (
            frozenset() if isinstance(tensors, Mapping) else frozenset(named_tensors(dict(_buffers_of(tensors))))
        )
        self._named, self._held = named_tensors(tensors), held
        with torch.no_grad():
            for name, tensor in self._named.items():
                self.name(name, tensor)
        self._opens = opens
        self._mode = Observer(self.observe, opened_classes() if opens else ())
        self._mode.__enter__()
        self._listening = True

    def name(self, name: str, tensor: Tensor, *, gathered: bool = False, keep_value: bool = True) -> None:
        """Say that this tensor, wherever the step uses it, is the parameter or buffer of that name.

        `gathered` says that its memory was just filled from shards. Unless its value is kept, a replay has to be given
        one.
        """
        was, self._listening = self._listening, False
        try:
            if is_foreign(tensor):
                self._give_up(f"parameters of type {type(tensor).__name__}")
            elif gathered:
                which = self._n_gatherings
                self._log.memory.name_gathered(
                    name, tensor, keep_value=keep_value, gathering=which, anew=self._is_filled
                )
            else:
                self._log.memory.name(name, tensor, is_buffer=name in self._buffers)
        finally:
            self._listening = was

    def gather_begins(self) -> None:
        """Say that parameters are gathered from shards until `gather_ends`: their memory is filled, and then named."""
        self._gathers, self._is_filled = True, False
        self._n_gatherings += 1

    def gather_ends(self) -> None:
        """Say that everything is part of the step again."""
        self._gathers = False

    def loss(self, loss: Tensor, *, scale: float = 1.0, n_samples: int | None = None) -> None:
        """End the tape of one loss, whose backward pass begins now: what follows is not recorded until `resume`.

        `scale` is the factor by which `loss` exceeds the module's own (a gradient scaler's, one over the number of
        accumulated batches); `n_samples` the samples it is a mean over, guessed from the data where it is not given.
        """
        self.outputs([loss], scale=scale, n_samples=n_samples)
        self._listening = False

    def outputs(self, outputs: Sequence[Tensor], *, scale: float = 1.0, n_samples: int | None = None) -> None:
        """End a tape with several results, as those of a function that returns no loss."""
        was, self._listening = self._listening, False
        try:
            if self._mode is None:
                raise RuntimeError("expected a recorder that is recording, got one that is not: call begin() first")
            with torch.no_grad():
                self._tapes.append(self._tape(outputs, scale, n_samples))
        except Exception as error:
            self._tapes.append(empty_tape(f"the tape could not be closed ({type(error).__name__}: {error})"))
        finally:
            self._listening = was and not self.obstacle

    def so_far(self) -> tuple[Tape, ...]:
        """The tapes of the losses up to now, while the recording goes on."""
        return tuple(self._tapes)

    def pause(self) -> None:
        """Let everything pass unseen until `resume`, as an optimizer's update."""
        self._listening = False

    def resume(self) -> None:
        """Record again: the backward pass or an update is over, and parameters may have moved."""
        if self._mode is None or self.obstacle:
            return
        self._named = named_tensors(self._source)
        self._refresh()
        self._mode.come_back()
        self._listening = True

    def _refresh(self, written: Sequence[Tensor] | None = None) -> None:
        """Take the parameters and buffers as they are now; those in the memory `written`, or all."""
        storages = None if written is None else {self._log.memory.storage_of(tensor) for tensor in written}
        with torch.no_grad():
            for name, tensor in self._named.items():
                if not is_foreign(tensor) and (storages is None or self._log.memory.storage_of(tensor) in storages):
                    self._log.memory.refresh(name, tensor)

    def leave(self) -> None:
        """Leave the mode until `resume`: what passes runs as fast as without it. `end` returns the tapes."""
        self._listening = False
        if self._mode is not None:
            self._mode.leave()

    def end(self) -> tuple[Tape, ...]:
        """Leave the mode, and return the tapes: one per loss, in order. Does nothing where none was entered."""
        if self._mode is None:
            return ()
        try:
            self.leave()
        finally:
            self._mode = None
        tapes, self._tapes = tuple(self._tapes), []
        self._log, self._trail, self._named = CallLog(MemoryMap()), GradientTrail(), {}
        return tapes

    # What the mode calls

    def observe(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one operator as it would have been, and write it down."""
        if not self._listening:
            return operator(*args, **kwargs)
        self._listening = False
        try:
            note = self._role(operator, args, kwargs)
        except Exception as error:
            note = _nothing
            self._give_up(f"{operator} could not be recorded ({type(error).__name__}: {error})")
        try:
            result = operator(*args, **kwargs)
        except BaseException:
            self._listening = not self.obstacle
            raise
        try:
            note(result)
        except Exception as error:
            self._give_up(f"{operator} could not be recorded ({type(error).__name__}: {error})")
        self._listening = not self.obstacle
        return result

    def _role(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[Any], None]:
        """What to do with the result of a call that is about to run."""
        if self._opens and any(isinstance(leaf, Tensor) and is_foreign(leaf) for leaf in leaves((args, kwargs))):
            return _nothing  # on tensors without values, by which DTensors find out shapes
        if self._gathers and not self._is_of_activations(operator, args, kwargs):
            self._is_filled = self._is_filled or bool(write_positions(operator))
            return _nothing
        if self._is_of_gradients(operator, args, kwargs):
            return partial(self._follow_gradients, written_by(operator, args, kwargs))
        if len(self._log.calls) >= self.max_calls:
            self._give_up(f"the step calls more than {self.max_calls} operators")
            return _nothing
        prepared = self._log.prepare(operator, args, kwargs)
        return _nothing if prepared is None else partial(self._log.note, prepared)

    def _follow_gradients(self, written: Sequence[Tensor], result: Any) -> None:
        """Take parameters as such a call has left them; what it has made are gradients, too."""
        self._refresh(written)
        known = {id(tensor) for tensor in self._named.values()}
        made = (out for out in (*tensors_and_none(result), *written) if out is not None and id(out) not in known)
        self._trail.follow(list(made))

    def _is_of_activations(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call beside a gather, as a cast of a unit's input, only reads what the step has computed."""
        read = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor) and not is_foreign(leaf))
        return not write_positions(operator) and any(self._log.memory.known_slot(leaf) is not None for leaf in read)

    def _is_of_gradients(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call works on gradients, as an optimizer written by hand does, or a perturbation of weights.

        A call that writes nothing matters only behind a loss.
        """
        if torch.is_grad_enabled() or not (self._tapes or write_positions(operator)):
            return False
        read = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return self._trail.leads_to(read, self._named.values())

    def _give_up(self, reason: str) -> None:
        log.info("the step is not recorded: %s", reason)
        self.obstacle = self.obstacle or reason
        self._listening = False
        self._log.calls = []

    def _tape(self, outputs: Sequence[Tensor], scale: float, n_samples: int | None) -> Tape:
        if self.obstacle:
            return empty_tape(self.obstacle, scale)
        outputs = [on_this_process(output) for output in outputs] if self._opens else outputs
        slots = [self._log.slot(output) for output in outputs]
        self._log.read_by_numpy()
        recorded = Recorded(
            self._log.calls,
            self._log.memory,
            self._log.draws.values,
            self._log.host_reads,
            named_tensors(self._source),
            self._buffers,
            held=self._held & held_storages(self._source) if self._held else self._held,
            losses=frozenset(slot for tape in self._tapes for slot in tape.outputs),
        )
        return closed_tape(recorded, slots, outputs, self._shards, scale=scale, n_samples=n_samples)


def _nothing(result: Any) -> None:
    """Note nothing of a call."""


def _buffers_of(module: nn.Module) -> Any:
    return all_names(module.named_buffers)
