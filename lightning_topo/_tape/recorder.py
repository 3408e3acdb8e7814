"""Watch one real training step and write down what it computes."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo._tape.closing import Recorded, closed_tape, empty_tape
from lightning_topo._tape.collectives import Collective, Pending, collective_of
from lightning_topo._tape.draws import SERIAL, Draws, drawn_by
from lightning_topo._tape.foreach import single_calls
from lightning_topo._tape.foreign import is_foreign, is_functional_collective, on_this_process, opened_classes
from lightning_topo._tape.gradient_trail import GradientTrail
from lightning_topo._tape.held import held_storages
from lightning_topo._tape.host_reads import READS, SHAPED_BY_VALUES, read_by_numpy
from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.mode import Observer
from lightning_topo._tape.names import all_names, named_tensors
from lightning_topo._tape.program import (
    Call,
    HostRead,
    Slot,
    Tape,
    functional_view,
    leaves,
    write_positions,
    written_by,
)

log: logging.Logger = logging.getLogger(__name__)

MAX_CALLS = 20_000
_NEWEST = 64
"""Storages among which to look for those that numpy was given, whenever it may have given something back."""


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
        return self._memory.copied_bytes

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
        self._source, self._name_gathered = tensors, name_gathered
        self._shards = frozenset(shard.untyped_storage()._cdata for shard in shards)
        self._calls: list[Call] = []
        self._memory = MemoryMap(copies)
        self._trail = GradientTrail()
        self._draws = Draws()
        self._host_reads: list[HostRead] = []
        self._pending: dict[int, list[Pending]] = {}
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
                self._memory.name_gathered(name, tensor, keep_value=keep_value, gathering=which, anew=self._is_filled)
            else:
                self._memory.name(name, tensor, is_buffer=name in self._buffers)
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
        storages = None if written is None else {self._memory.storage_of(tensor) for tensor in written}
        with torch.no_grad():
            for name, tensor in self._named.items():
                if not is_foreign(tensor) and (storages is None or self._memory.storage_of(tensor) in storages):
                    self._memory.refresh(name, tensor)

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
        self._calls = []
        self._memory, self._trail = MemoryMap(), GradientTrail()
        self._draws, self._pending, self._named = Draws(), {}, {}
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
        prepared = self._before(operator, args, kwargs)
        return _nothing if prepared is None else lambda result: self._after(operator, args, kwargs, result, *prepared)

    def _follow_gradients(self, written: Sequence[Tensor], result: Any) -> None:
        """Take parameters as such a call has left them; what it has made are gradients, too."""
        self._refresh(written)
        known = {id(tensor) for tensor in self._named.values()}
        made = (out for out in (*_tensors_and_none(result), *written) if out is not None and id(out) not in known)
        self._trail.follow(list(made))

    def _is_of_activations(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call beside a gather, as a cast of a unit's input, only reads what the step has computed."""
        read = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor) and not is_foreign(leaf))
        return not write_positions(operator) and any(self._memory.known_slot(leaf) is not None for leaf in read)

    def _is_of_gradients(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call works on gradients, as an optimizer written by hand does, or a perturbation of weights.

        A call that writes nothing matters only behind a loss.
        """
        if torch.is_grad_enabled() or not (self._tapes or write_positions(operator)):
            return False
        read = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return self._trail.leads_to(read, self._named.values())

    def _before(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Arguments as slots, tensors by slot, what will be written; constants that it would overwrite are copied."""
        if not hasattr(operator, "_schema"):
            raise TypeError("a higher-order operator")
        if torch.compiler.is_compiling():
            raise TypeError("a compilation")
        if len(self._calls) >= self.max_calls:
            self._give_up(f"the step calls more than {self.max_calls} operators")
            return None
        if any(is_lazy(leaf) for leaf in leaves(args)):
            return None  # nothing is computed from a parameter that has no values yet
        found: list[tuple[Tensor, int]] = []
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        pending = self._pending
        if operator._schema.name == "aten::_cudnn_rnn":  # its buffer of weights is the memory of those in its list
            args = (*args[:3], None, *args[4:])
        if operator._schema.name == "_c10d_functional::wait_tensor":
            self._pending = {}  # not complete yet
        encoded = self._encoded(args, found)
        encoded_kwargs = {key: self._encoded(value, found) for key, value in kwargs.items()} if kwargs else {}
        self._pending = pending
        written = written_by(operator, args, kwargs)
        for tensor in written:
            self._memory.about_to_write(tensor)
            self._draws.about_to_write(self._memory.storage_of(tensor))
        is_issued_again = self._opens and is_functional_collective(operator._schema.name)
        collective = None if is_issued_again else collective_of(operator, args, kwargs)
        return encoded, encoded_kwargs, found, written, grad, collective

    def _after(
        self,
        operator: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        encoded: tuple[Any, ...],
        encoded_kwargs: Mapping[str, Any],
        found: list[tuple[Tensor, int]],
        written: list[Tensor],
        grad: bool,
        collective: Collective | None,
    ) -> None:
        schema_name = operator._schema.name
        if self._opens and any(out is not None and is_foreign(out) for out in _tensors_and_none(result)):
            return
        if schema_name == "aten::set_" and not isinstance(args[1] if len(args) > 1 else None, Tensor):
            self._memory.forget(result)  # a replay would write to this very storage: it is known by its memory
            return
        flows = grad and schema_name not in ("aten::detach", "aten::detach_") and any(t.requires_grad for t, _ in found)
        if torch.Tag.inplace_view in operator.tags and (plain := functional_view(operator)) is not None:
            operator, written = plain, []
            self._memory.forget(result)  # the same tensor, but another view: it gets a slot of its own
            found = [(tensor, slot) for tensor, slot in found if tensor is not result]
        known = {id(tensor): slot for tensor, slot in found}
        outputs = []
        for out in _tensors_and_none(result):
            if out is None:
                outputs.append(None)
            elif id(out) in known:
                outputs.append(known[id(out)])
            else:
                outputs.append(self._memory.new(out, connected=flows and _is_differentiable(out)))
        if schema_name == "aten::detach" and found and outputs[0] is not None:
            self._memory.detached_from[outputs[0]] = found[0][1]
        if schema_name in (*READS, *SHAPED_BY_VALUES):
            for _, slot in found[:1]:
                value = float(result) if isinstance(result, (int, float)) else None
                self._host_reads.append(HostRead(schema_name, slot, len(self._calls), value))
        if schema_name == "aten::lift_fresh":  # numbers of Python's or numpy's become a tensor
            self._host_reads += read_by_numpy(self._memory.handed_to_numpy(_NEWEST), self._calls)
        slots = tuple(dict.fromkeys(known[id(tensor)] for tensor in written))
        for tensor, slot in zip(written, (known[id(tensor)] for tensor in written), strict=True):
            if flows and _is_differentiable(tensor):
                self._memory.connect(slot)
        if collective is not None:
            for call, pending, storage in collective.recorded(known, outputs, result, next(SERIAL)):
                self._calls.append(call)
                self._pending.setdefault(self._memory.storage_of(storage), []).append(pending)
            return
        if schema_name == "aten::copy_":
            (to, _), (source, _), *_ = found
            if (copy := self._memory.copied_storage(to, source)) is not None:
                self._calls.append(copy)
                return
        drawn = drawn_by(operator, args, _tensors_and_none(result))
        storage = None if drawn is None or id(drawn) in known else self._memory.storage_of(drawn)
        draw = None if drawn is None else self._draws.keep(drawn, storage)
        self._calls += single_calls(Call(operator, encoded, encoded_kwargs, tuple(outputs), slots, grad, draw))

    def _encoded(self, value: Any, found: list[tuple[Tensor, int]]) -> Any:
        """Arguments with slots in place of tensors."""
        if isinstance(value, Tensor):
            slot = self._slot(value)
            found.append((value, slot))
            return Slot(slot)
        if isinstance(value, (list, tuple)):
            return tuple(self._encoded(part, found) for part in value)
        return value

    def _slot(self, tensor: Tensor) -> int:
        if is_foreign(tensor):
            raise TypeError(f"a tensor of type {type(tensor).__name__}")
        if self._name_gathered is not None and isinstance(tensor, nn.Parameter) and not self._memory.is_named(tensor):
            self._name_gathered()
            if not self._memory.is_named(tensor):
                raise TypeError("a parameter that is none of the module's")
        if self._pending:
            for pending in self._pending.pop(self._memory.storage_of(tensor), ()):
                name, value = pending.finished()
                self._draws.values[name] = value
        slot, aliases = self._memory.find(tensor)
        self._calls += aliases
        return slot

    def _give_up(self, reason: str) -> None:
        log.info("the step is not recorded: %s", reason)
        self.obstacle = self.obstacle or reason
        self._listening = False
        self._calls = []

    def _tape(self, outputs: Sequence[Tensor], scale: float, n_samples: int | None) -> Tape:
        if self.obstacle:
            return empty_tape(self.obstacle, scale)
        outputs = [on_this_process(output) for output in outputs] if self._opens else outputs
        slots = [self._slot(output) for output in outputs]
        self._host_reads += read_by_numpy(self._memory.handed_to_numpy(), self._calls)
        recorded = Recorded(
            self._calls,
            self._memory,
            self._draws.values,
            self._host_reads,
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


def _tensors_and_none(result: Any) -> list[Tensor | None]:
    """The leaves of a result that are tensors, or stand where a tensor would."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [out for part in result for out in _tensors_and_none(part)]
    return [None]


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


_PLAIN = torch._C._disabled_torch_dispatch_impl
