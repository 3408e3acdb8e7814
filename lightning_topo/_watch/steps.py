"""The optimizers' own updates: where each began, where it ended, and weights that something else has moved."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_topo._watch.gradient_scales import GradientScales
from lightning_topo._watch.kept_values import KeptValues
from lightning_topo._watch.parameter_names import Form, ParameterNames
from lightning_topo._watch.rates import learning_rate
from lightning_topo._watch.updates import Arguments, RunningStep, Update, with_closure_followed
from lightning_topo._watch.values_after import ValuesAfter

Hook = TypeVar("Hook", bound=Callable[..., Any])


class Steps:
    """Sees every update of a module's trained parameters, whichever optimizer makes it, and whenever it joins.

    Listens to torch's hooks for all optimizers, so that those inside wrappers and those held by hand are seen too. Of
    nested optimizers the outermost counts. Optimizers of other modules are passed over. With `keep_copies=False`
    (parameters in shards) updates are only counted. A closure that an update runs first is no part of it.

    `guards` are called right after an update, before anything looks at it; they may change the parameters. `on_settle`
    is called before a second update in one batch overwrites the copies of the first, with what `overwritten` returns;
    `on_deferred` before the first update of a batch overwrites copies that were kept for later (`defer`), with whether
    the parameters are still as the deferred updates left them. `on_outside` is called with the names of parameters that
    something else has moved between two updates, `on_overwritten` where it did so before the batch of the update was
    over, with whether what the update made of them is lost. `on_begin` is called before an update, with whether it runs
    a closure and the names of its parameters, and again without names whenever the closure is over; `on_made` right
    after it with what it was, `on_end` after the guards.
    `gradients` measures what the training does to a gradient before an optimizer takes it. All this runs in a context
    of `spending`, but for the guards. Errors here are kept in `failures`: they must not end a step.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        on_settle: Callable[[Sequence[str]], None],
        on_outside: Callable[[Optimizer, Sequence[str]], None],
        on_overwritten: Callable[[Optimizer, Sequence[str], bool], None] = lambda optimizer, names, is_lost: None,
        on_deferred: Callable[[bool], None] = lambda stands: None,
        on_begin: Callable[[bool, Sequence[str]], None] = lambda runs_closure, names: None,
        on_made: Callable[[Update], None] = lambda update: None,
        on_end: Callable[[], None] = lambda: None,
        spending: Callable[[], AbstractContextManager[None]] = nullcontext,
        keep_copies: bool = True,
    ) -> None:
        self.guards: list[Callable[[Update], None]] = []
        self.pending: list[Update] = []
        self.optimizers: list[Optimizer] = []
        self.failures: list[Exception] = []
        self.gradients: GradientScales = GradientScales()
        self._module, self._on_settle, self._on_outside = module, on_settle, on_outside
        self._on_begin, self._on_end, self._on_deferred = on_begin, on_end, on_deferred
        self._on_overwritten, self._on_made = on_overwritten, on_made
        self._keeps_copies, self._spending = keep_copies, spending
        self._names = ParameterNames(module)
        self._counted: list[Any] = []
        self._kept = KeptValues()
        self._foreign: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._running = RunningStep()
        self._values_after = ValuesAfter()
        self._present: dict[str, Tensor] | None = None
        self._present_in = 0  # which generation
        self._is_first = self._is_deferred = self._has_checked = False
        _WATCHING.add(self)
        self._handles = [
            register_optimizer_step_pre_hook(_uncompiled(self._before_update)),
            register_optimizer_step_post_hook(_uncompiled(self._after_update)),
        ]

    @property
    def has_updates(self) -> bool:
        """Whether `pending` are updates of this batch, and not the last one's."""
        return bool(self.pending) and not self._is_deferred

    @property
    def is_stepping(self) -> bool:
        """Whether an optimizer is in its `step`: a loss that is computed now belongs to its closure."""
        return self._running.optimizer is not None

    def release(self) -> None:
        """Stop listening, and let all copies go."""
        for handle in self._handles:
            handle.remove()
        self.pending = []
        self._running.forget()
        self._kept.clear()
        self._present = None
        self._values_after.forget()
        self.guards.clear()
        _WATCHING.discard(self)

    @property
    def generation(self) -> int:
        """Counts up whenever parameters were added, replaced or renamed."""
        return self._names.generation + self._kept.n_met

    def read_names(self) -> None:
        """Read the module's parameters anew: some may have been added, replaced or renamed."""
        self._names.read()
        self._present = None

    def forms(self) -> dict[str, Form]:
        """Shape and dtype of all parameters by each of their names; lazy ones have none yet."""
        return self._names.forms()

    def ids(self) -> dict[str, int]:
        """Which parameter each name stands for."""
        return {name: key for key, names in self._names.by_id.items() for name in names}

    def keep(self, optimizers: Iterable[Any]) -> None:
        """Copy the parameters that these optimizers train, as far as there is no copy yet.

        Where the loop knows of no optimizer, all that could be trained: something moves them, and it may pass no hook.
        Without copies, their updates count as the module's whatever they own: DeepSpeed gives them flat parts of it.
        """
        if not self._keeps_copies:
            self._counted = list(optimizers)
            return
        known = [p for optimizer in optimizers for p in _trained(optimizer)]
        for parameter in self._names.known(known or [p for p in self._module.parameters() if p.requires_grad]):
            self._kept.meet(parameter)

    def begin(self) -> None:
        """Forget updates that never ended."""
        self._running.forget()
        self._values_after.forget()
        self._present = None  # parameters may have been frozen or thawed
        if not self._names.are_current:
            self.read_names()

    @property
    def has_stood(self) -> bool:
        """Whether this batch has updates, and they have moved nothing."""
        return bool(self.pending) and not any(k.has_moved() for k in self._kept.of(_unique(self.pending)))

    def check_written(self) -> None:
        """Find parameters that something has written to since the last batch: in this one they may see no update."""
        if self.has_updates:  # an update between two batches: it is this one's
            return
        if not self._kept.is_any_written():
            return
        self.take_deferred()
        for optimizer in tuple(self.optimizers):
            self._check(optimizer, self._owned(optimizer))

    @property
    def copies_values(self) -> bool:
        """Whether something else writes to parameters before the batch is over: their values are copied before it."""
        return self._values_after.keeps

    def overwritten(self) -> list[str]:
        """Report parameters that something else has written to since their update of this batch.

        If values after the update are lost, the names of all that these updates moved are returned: the step cannot be
        measured. Otherwise `trained` still gives the values.
        """
        found, copies = self._values_after.overwritten(), self._values_after.copies
        lost = {id(p) for p in found} - copies.keys()
        for update in self.pending:
            own = {id(p) for p in update.after.values()}
            if names := [self._names.of(p)[0] for p in self._names.known(found) if id(p) in own]:
                self._on_overwritten(update.optimizer, names, not own.isdisjoint(lost))
        moved = lost | {id(p) for p in _unique(self.pending)} if lost else lost
        return [name for key in moved for name in self._names.by_id.get(key, ())]

    def trained(self) -> dict[str, Tensor]:
        """The parameters that optimizers train, by each of their names, as far as they have been seen.

        They are as their last update has left them, as far as that is known (`copies_values`).
        """
        live = self._live()
        if not self._values_after.copies:
            return live
        copies = self._values_after.copies
        return live | {name: copies[key] for key, names in self._names.by_id.items() if key in copies for name in names}

    def _live(self) -> dict[str, Tensor]:
        if self._present is None or self._present_in != self.generation:
            names = self._names.by_id
            updated = {id(p) for p in _unique(self.pending)}  # and maybe frozen since, as a GAN's networks take turns
            self._present = {
                name: kept.parameter.detach()
                for kept in self._kept
                if is_trained(kept.parameter) or id(kept.parameter) in updated
                for name in names.get(id(kept.parameter), ())
            }
            self._present_in = self.generation
        return self._present

    def before(self) -> dict[str, Tensor]:
        """`trained()` as it was before the updates of this batch."""
        return self.trained() | {name: tensor for update in self.pending for name, tensor in update.before.items()}

    def defer(self) -> None:
        """Leave the copies before this batch's updates as they are, until `take_deferred` or the next update."""
        self._is_deferred = True
        for kept in self._kept.of(_unique(self.pending)):
            kept.version = kept.parameter._version

    def take_deferred(self) -> None:
        """Let go of the copies before the last batch's updates, once `on_deferred` has looked at them."""
        if not self._is_deferred:
            return
        kept = self._kept.of(_unique(self.pending))
        try:
            self._on_deferred(not any(k.is_written for k in kept))
        except Exception as error:
            self.failures.append(error)
        self._is_deferred, self.pending = False, []
        # What something else has moved since is seen before the next update.
        self._kept.renew([k for k in kept if not k.is_written])

    def lend(self) -> dict[int, Tensor]:
        """The copies of the present values, by the ids of their parameters: they stay as they are until `advance`."""
        return self._kept.lend()

    def advance(self) -> None:
        """Take the present values as those before the next updates; those of this batch are done."""
        self._is_deferred = False
        self._kept.take_back()
        self._renew_updated()

    def _renew_updated(self) -> None:
        done, self.pending = self.pending, []
        self._values_after.forget()
        self._kept.renew(self._kept.of(_unique(done)))

    def raise_failure(self) -> None:
        """Raise the first error that was kept since the last call: an optimizer's step must not end by it."""
        failures, self.failures = self.failures, []
        if failures:
            raise failures[0]

    def with_waiting(self, optimizers: Iterable[Any]) -> list[Any]:
        """The optimizers that have stepped, and of these those that train parameters which none of them owns."""
        owned = {id(p) for optimizer in self.optimizers for p in _trained(optimizer)}
        waiting = [o for o in optimizers if any(id(p) not in owned for p in _trained(o))]
        return [*self.optimizers, *waiting]

    def moving(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The names of those that this batch has moved so far; of a second update in it only what that has moved."""
        found = {id(k.parameter) for k in self._kept.of(parameters.values()) if k.is_written and k.has_moved()}
        return [name for name, parameter in parameters.items() if id(parameter) in found]

    def moved(self) -> list[str]:
        """Names of kept parameters that have moved though no update of this batch moved them."""
        own = {id(p) for p in _unique(self.pending)}
        others = [k for k in self._kept if id(k.parameter) not in own and self._names.of(k.parameter)]
        moved = [k for k in others if k.has_moved()]
        self._kept.renew(moved)
        return [self._names.of(k.parameter)[0] for k in moved]

    def _before_update(self, optimizer: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> Arguments | None:
        with self._apart():
            return self._begin_update(optimizer, (args, options))
        return None

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What is done here takes no time of the training, and no error of it ends an optimizer's step."""
        with self._spending():
            try:
                yield
            except Exception as error:
                self.failures.append(error)

    def _begin_update(self, optimizer: Optimizer, arguments: Arguments) -> Arguments | None:
        if self._running.holds_another():
            return None
        owned = self._owned(optimizer)
        if not owned:
            return None
        if not self._names.are_current:  # since the batch began
            self.read_names()
        self._running.begin(optimizer)
        self.take_deferred()
        self._is_first = not any(optimizer.state.values())
        updated = {id(p) for p in _unique(self.pending)}
        if any(id(p) in updated for p in owned):
            self._on_settle(self.overwritten())
            self._renew_updated()
        # A closure computes the gradient first: what it moves is not the optimizer's doing.
        with_closure = with_closure_followed(arguments, partial(self._closure_is_over, optimizer))
        if with_closure is None:
            self._check(optimizer, owned)
            self.gradients.stepping(optimizer)
        self._has_checked = with_closure is None
        self._on_begin(with_closure is not None, [name for p in owned for name in self._names.of(p)])
        return with_closure

    def _closure_is_over(self, optimizer: Optimizer) -> None:
        """The update itself begins, or goes on: it may evaluate its closure again, where it has moved parameters."""
        with self._apart():
            if not self._has_checked:
                self._has_checked = True
                self._check(optimizer, self._owned(optimizer))
            self.gradients.stepping(optimizer)
            self._on_begin(False, ())

    def _check(self, optimizer: Optimizer, owned: Sequence[Tensor]) -> None:
        """Find parameters that something else has moved since the last update, and take their values as they are."""
        if not self._keeps_copies:
            return
        if outside := self._kept.moved(owned):
            self._kept.renew(outside)
            self._on_outside(optimizer, [self._names.of(kept.parameter)[0] for kept in outside])

    def _after_update(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._running.end(optimizer):
            return
        update = None
        with self._apart():
            update = self._made(optimizer)
            self._on_made(update)
        if update is None:
            return
        self._present = None  # networks that take turns may have been frozen and thawed since
        for guard in self.guards:  # what a guard raises is meant to end the training; its time is its own
            guard(update)
        self.pending.append(update)
        self._present = None
        with self._apart():
            if self._keeps_copies:
                self._values_after.updated(update.after.values())
            if self.guards:  # what they have written is the update, for every watch that has seen it before
                for other in tuple(_WATCHING):
                    other._values_after.rewritten(update.after.values())
            self._on_end()

    def _made(self, optimizer: Optimizer) -> Update:
        """The update that an optimizer has just made."""
        if not any(optimizer is known for known in self.optimizers):
            self._supersede(optimizer)
            self.optimizers.append(optimizer)
        self.gradients.stepped(optimizer)
        kept, names = self._kept.of(self._owned(optimizer)), self._names.by_id
        named = [(name, k) for k in kept for name in names[id(k.parameter)]]
        before, after = {name: k.copy for name, k in named}, {name: k.parameter for name, k in named}
        return Update(optimizer, before, after, self._is_first, learning_rate(optimizer))  # now: a schedule may follow

    def _supersede(self, optimizer: Optimizer) -> None:
        """Let go of optimizers that a new one replaces: it trains all that they train."""
        own = {id(p) for p in _trained(optimizer)}
        self.optimizers[:] = [known for known in self.optimizers if not own.issuperset(map(id, _trained(known)))]

    def _owned(self, optimizer: Optimizer) -> list[Tensor]:
        """The module's parameters that the optimizer trains."""
        trained = _trained(optimizer)
        if any(optimizer is counted for counted in self._counted):
            return trained
        found = self._names.known(trained)
        if len(found) < len(trained) and self._foreign.get(optimizer) != len(trained):
            self.read_names()  # a parameter was added or replaced, or is another module's
            found = self._names.known(trained)
            if len(found) < len(trained):
                self._foreign[optimizer] = len(trained)
        return found


_WATCHING: WeakSet[Steps] = WeakSet()


def _uncompiled(hook: Hook) -> Hook:
    """The hook, which torch.compile leaves alone where it compiles a step."""
    return cast(Hook, torch.compiler.disable(hook))


def is_trained(parameter: Tensor) -> bool:
    """Whether an optimizer would move a parameter: torch's ask for its gradient, and not whether it requires one.

    >>> import torch
    >>> p = torch.ones(1, requires_grad=True)
    >>> p.sum().backward()
    >>> is_trained(p.requires_grad_(False))
    True
    """
    return parameter.requires_grad or parameter.grad is not None


def _trained(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if is_trained(p)]


def _unique(updates: Iterable[Update]) -> list[Tensor]:
    return list({id(p): p for update in updates for p in update.after.values()}.values())
