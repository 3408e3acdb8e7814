"""This process's share of the neurons at one step, and before it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn

from lightning_topo._tape.names import clean_name
from lightning_topo._watch.output import ReferenceStore
from lightning_topo._watch.probing import is_divided, measures_steps, needs_gradient_scales
from lightning_topo._watch.reference_clouds import ReferenceClouds, WithFrozen
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo.homology import Worker
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._capture import Sharding, gather_clouds, shard_copies, sharding
from lightning_topo.neurons._partly_trained import Beside, frozen_beside, name_of_trained_part
from lightning_topo.neurons._units import own_part
from lightning_topo.probes import Capture, Clouds, Probe, ProbeResult
from lightning_topo.probes._probe import LossFn

_MOST_TURNS = 4
"""Of so many sets of parameters that are trained in turn it is kept what is frozen beside them."""

TrainingLoss = Callable[[LossFn | None], AbstractContextManager[Callable[[], Tensor]]]


class Snapshots:
    """Takes the clouds of one training: group k on process k % world.

    A cloud holds neurons of which an optimizer trains a part, with what is frozen of them (`beside`); of targets,
    teachers and layers that are frozen as a whole it holds nothing.
    `now` and `before_step` are collectives where parameters are sharded; where every process has them whole, nothing
    travels. A process holds the clouds of its own groups, and no others.
    """

    def __init__(
        self, training: Training, steps: Steps, groups: Sequence[NeuronGroup], training_loss: TrainingLoss
    ) -> None:
        self.groups: tuple[NeuronGroup, ...] = tuple(groups)
        self.own: tuple[NeuronGroup, ...] = tuple(group for k, group in enumerate(groups) if training.ranks.owns(k))
        self.sharding: Sharding = sharding(training.root)
        self.reference: ReferenceClouds | None = None  # where no probe looks back
        self.began_at: int | None = None
        self.worker: Worker | None = None
        self.store: ReferenceStore | None = None  # on the first rank, if the run has a record
        self._training, self._steps, self._training_loss = training, steps, training_loss
        self._sharded_before: tuple[int, Clouds] | None = None
        self._gathered_for: tuple[NeuronGroup, ...] = ()
        self._shards_before: tuple[int, Mapping[str, Tensor]] | None = None
        self._members = {group.name: frozenset(group.parameter_names) for group in groups}
        self._forms = steps.forms()
        self._generation, self._changed = steps.generation, frozenset[str]()
        self._beside: dict[tuple[int, frozenset[str]], Beside] = {}

    @property
    def module(self) -> nn.Module:
        """The module that trains."""
        return self._training.module

    def active(self) -> tuple[NeuronGroup, ...]:
        """This process's groups in which an optimizer trains something, and which still are as they were found."""
        if self.sharding != "whole":
            present = set(self._trained_in_shards())
            return tuple(group for group in self.own if group in present)
        return tuple(self._as_found(self.own, self._steps.trained()))

    def _as_found(self, groups: Sequence[NeuronGroup], tensors: Mapping[str, Tensor]) -> Iterator[NeuronGroup]:
        """Those of these groups that have a part in these parameters, and are as they were found."""
        changed = self.changed()
        for group in groups:
            own = self._members[group.name]
            if any(map(tensors.__contains__, own)) and changed.isdisjoint(own):
                yield group

    def _trained_in_shards(self) -> tuple[NeuronGroup, ...]:
        """The groups of all processes in which something is trained, as all processes see alike."""
        named = {clean_name(name): p.requires_grad for name, p in self.module.named_parameters()}
        known = {group: [named[name] for name in self._members[group.name] if name in named] for group in self.groups}
        return tuple(group for group, trained in known.items() if any(trained) or not trained)

    def changed(self) -> frozenset[str]:
        """Parameters that are gone, renamed, or of another shape or dtype since these neurons were found."""
        if self._steps.generation != self._generation:
            self._generation, present = self._steps.generation, self._steps.forms()
            self._changed = frozenset(name for name, form in self._forms.items() if present.get(name) != form)
        return self._changed

    def touched(self) -> tuple[NeuronGroup, ...]:
        """This process's groups that the present batch's updates change, and those that are no more as they were."""
        names = {name for update in self._steps.pending for name in update.after} | self.changed()
        return tuple(group for group in self.own if not self._members[group.name].isdisjoint(names))

    def now(self) -> Clouds:
        """The neurons as they stand; where parameters are whole, gathered when first asked for."""
        return self._clouds(self._steps.trained()) if self.sharding == "whole" else self._gathered()

    def before(self, step: int) -> Clouds | None:
        """The neurons before the updates of the present batch."""
        if self.sharding == "whole":
            return self._clouds(self._steps.before()) if self._steps.pending else None
        kept = self._sharded_before
        return kept[1] if kept is not None and kept[0] == step - 1 else None

    def begun_at(self, step: int, shards: Mapping[str, Tensor] | None) -> None:
        """Where parameters are sharded, take the clouds before `step` from copies of the shards, if there are any."""
        if self.sharding != "whole" and shards is not None:
            self._sharded_before = (step - 1, self._gathered(shards))

    def before_step(self, step: int, probes: Sequence[Probe]) -> None:
        """Where parameters are sharded, keep the clouds or shards before a step that one of these probes measures."""
        if self.sharding == "whole":
            return
        if not any(getattr(probe, "needs_parameters_before", False) for probe in probes):
            self._shards_before = None
        elif self._shards_before is None or self._shards_before[0] != step - 1:
            trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
            self._shards_before = (step - 1, {name: own_part(p).detach().clone() for name, p in trained.items()})
        if not any(measures_steps(probe) for probe in probes):
            return
        if self._sharded_before is None or self._sharded_before[0] != step - 1 or self._has_thawed():
            self._sharded_before = (step - 1, self.now())

    def after_step(self, step: int, now: Clouds) -> None:
        """Where parameters are sharded, the present clouds are those before the next step."""
        if self.sharding != "whole":
            self._sharded_before = (step, now)

    def _gathered(self, instead: Mapping[str, Tensor] | None = None) -> Clouds:
        """This process's clouds, from the shards of all; a collective."""
        self._gathered_for = self._trained_in_shards()
        mine = [group.name for group in self.active()]
        here, failures = gather_clouds(self._training.root, self._gathered_for, mine, instead)
        return Clouds((), {}, here, failures)

    def _has_thawed(self) -> bool:
        """Whether groups are trained, on any process, that were not when clouds were gathered."""
        return not set(self._gathered_for).issuperset(self._trained_in_shards())

    def refer_from(self, step: int, changed: Collection[str]) -> list[str]:
        """Let the totals of groups with these parameters count from before `step`; the names of those groups."""
        groups = [group.name for group in self.active() if not self._members[group.name].isdisjoint(changed)]
        start = self.before(step)
        if self.reference is not None and start is not None:
            start = start.trained()
            for name in groups:
                self.reference.hold(name, start[name])
            self._tell_totals(step - 1, (name for name, own in self._members.items() if not own.isdisjoint(changed)))
        return groups

    def take_over(self, earlier: "Snapshots", step: int) -> None:
        """Keep the clouds of the beginning as far as they fit the present groups; others begin now, after `step`."""
        self.store = earlier.store
        if earlier.reference is None:
            return
        now = self.now().trained().only(group.name for group in self.active())
        self.reference = earlier.reference.among({name: now.shape(name) for name in now})
        begun = [name for name in now if name not in self.reference]
        for name in begun:
            self.reference.hold(name, now[name])
        self._tell_totals(step, begun)

    def kept_names(self) -> dict[str, str]:
        """By group, the name under which the record keeps the cloud of its beginning: one for each trained part."""
        trained = self._steps.trained() if self.sharding == "whole" else None
        return {g.name: g.name if trained is None else name_of_trained_part(g, trained) for g in self.groups}

    def _tell_totals(self, step: int, names: Iterable[str]) -> None:
        """Let the record say that the totals of these groups count from `step`."""
        if self.store is not None:
            self.store.totals_from(step, names)

    def capture(
        self,
        probe: Probe,
        step: int,
        now: Clouds,
        previous: ProbeResult | None,
        groups: Sequence[NeuronGroup] | None = None,
    ) -> Capture:
        """The capture for one probe; a probe by group gets only these `groups`."""
        mine = self.active() if groups is None else tuple(groups)
        self._refer_anew(mine, step, now)
        wants_parameters = getattr(probe, "needs_parameters_before", False)
        optimizers = self._steps.with_waiting(self._training.optimizers)
        gradients = self._steps.gradients if needs_gradient_scales(probe) else None
        n_own = None if gradients is None else gradients.batches_per_update(optimizers)
        before = self.before(step)
        begins = self.reference is not None and step == self.began_at
        return Capture(
            step=step,
            epoch=self._training.epoch,
            module=self._training.module,
            groups=mine if is_divided(probe) else self._present(now),
            neurons=now,
            before=before,
            reference=before if begins and before is not None else WithFrozen(self.reference or {}, now),
            optimizers=optimizers,
            training_loss=self._training_loss,
            previous=previous,
            parameters_before=self._parameters_before(step) if wants_parameters and self._steps.pending else None,
            is_first_step=bool(self._steps.pending) and all(update.is_first for update in self._steps.pending),
            sharding=self.sharding,
            worker=self.worker,
            gradient_scales=None if gradients is None else gradients.of(optimizers),
            batches_per_update=None if n_own is None else n_own * self._training.ranks.size,
        )

    def _parameters_before(self, step: int) -> Mapping[str, Tensor] | None:
        """The trained parameters before this batch's updates, in shards this process's part of each."""
        if self.sharding == "whole":
            return self._steps.before()
        kept = self._shards_before
        return kept[1] if kept is not None and kept[0] == step - 1 else None

    def _clouds(self, tensors: Mapping[str, Tensor]) -> Clouds:
        """The clouds of all groups that have a part in these parameters."""
        return Clouds(list(self._as_found(self.groups, tensors)), tensors, beside=self.beside(tensors))

    def beside(self, trained: Mapping[str, Tensor]) -> Beside:
        """What is frozen of the neurons of which these parameters are trained."""
        key = self._steps.generation, frozenset(trained)
        if key not in self._beside:
            if len(self._beside) >= _MOST_TURNS:
                self._beside.clear()
            self._beside[key] = frozen_beside(self.groups, self.module, trained)
        return self._beside[key]

    def _present(self, now: Clouds) -> tuple[NeuronGroup, ...]:
        """The groups of all processes that have a cloud: not those in which nothing is trained."""
        names = set(now)
        return tuple(g for g in self.groups if g.name in names) if self.sharding == "whole" else self._gathered_for

    def _refer_anew(self, groups: Sequence[NeuronGroup], step: int, now: Clouds) -> None:
        """Where parameters have joined a group, its beginning is where they joined: a cloud has other columns then.

        In shards a group has all of its columns, or nothing of it is trained.
        """
        if self.reference is None:
            return
        start, now = (self.before(step) or now).trained(), now.trained()
        known = set(start).intersection(now)
        for group in (one for one in groups if one.name in known):
            if self.reference.shape(group.name) != now.shape(group.name):
                self.reference.hold(group.name, start[group.name])


def kept_shards(training: Training) -> Mapping[str, Tensor] | None:
    """Copies of this process's shards before a step whose neurons are not known yet; None where that is no use."""
    return None if sharding(training.root) == "whole" else shard_copies(training.root)
