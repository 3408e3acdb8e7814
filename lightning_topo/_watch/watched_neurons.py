"""The neurons that a training is watched by: found on its first step, and again where it has new parameters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from lightning_topo._parameter_coverage import UNUSED
from lightning_topo._tape import runs_compiled_code
from lightning_topo._watch.finding import Finding, Join
from lightning_topo._watch.findings_exchange import EXCHANGE_STEPS, Exchange
from lightning_topo._watch.measuring import Measuring
from lightning_topo._watch.membership import Change, Membership
from lightning_topo._watch.messages import left_open, members_changed, parts_used
from lightning_topo._watch.probing import Probing
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.snapshots import Snapshots, kept_shards
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo._watch.unused_parts import UnusedParts
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._later_steps import joined, renewed

MOST_TRIES = 8
"""Steps in a row that are recorded until one uses what is looked for: networks may take turns, or be drawn."""

MOST_SAID = 3
"""A change of the trained parameters that comes back is said this many times: networks may be frozen in turns."""


class WatchedNeurons:
    """Finds groups of neurons on recorded steps, and has them measured. `groups` are empty before the first look."""

    def __init__(
        self,
        training: Training,
        finding: Finding,
        recording: Recording,
        training_loss: TrainingLoss,
        steps: Steps,
        probing: Probing,
        measuring: Measuring,
        exchange: Exchange,
    ) -> None:
        self.groups: tuple[NeuronGroup, ...] = ()
        self.finding: Finding = finding
        self.is_again_wanted: bool = False
        self._n_followed = 0  # losses on which groups were found
        self._training, self._recording, self._training_loss = training, recording, training_loss
        self._steps, self._probing, self._measuring, self._exchange = steps, probing, measuring, exchange
        self._membership: Membership | None = None
        self._shards: Mapping[str, Tensor] | None = None
        self._waited: tuple[int, str] | None = None  # the first step, and why the next one was waited for
        self._idle: list[int] = []  # steps before it, without a loss, in which nothing moved
        self._told_gone: set[str] = set()
        self._looked_for: set[str] = set()  # parameters in no group, for which another step was looked at
        self._joined: tuple[int, frozenset[str]] | None = None  # those of them that wait, and the step they joined in
        self._unused, self._has_unused = UnusedParts(steps), False
        self._replaces = False  # whether the groups known hold no more when neurons are looked for again
        self._n_tries = 0
        self._n_said: Counter[Change] = Counter()

    @property
    def wants_step(self) -> bool:
        """Whether neurons are to be found on the step that begins."""
        return not self._measuring.has_begun or self.is_again_wanted

    @property
    def first_step(self) -> int | None:
        """The first step, if it was left alone and no other has come since."""
        if self._measuring.has_begun:
            return None
        return self._waited[0] if self._waited is not None else next(reversed(self._idle), None)

    def before_step(self) -> None:
        """Copy the shards from which the neurons before the first step can be had; before anything is recorded."""
        if not self._measuring.has_begun and self._shards is None:
            self._shards = kept_shards(self._training)

    def release(self) -> None:
        """Let copies of shards go, and parameters."""
        self._shards = None
        self._unused.follow([], self._training.module)

    def find(self, join: Join | None = None) -> Sequence[NeuronGroup]:
        """Find the neurons on the part of the present batch recorded so far; a collective. `join` as for `Finding`."""
        if not self.groups:
            tapes = self._recording.so_far()
            self._n_followed = len(tapes)
            self.groups = self.finding.groups(tapes, self._recording.obstacle_to_neurons, join)
        return self.groups

    def wait(self, step: int) -> bool:
        """Leave the first step alone if it cannot be replayed: it may do what no later step does. A collective.

        Those before it which have no loss, and move nothing, are left alone in any case.
        """
        has_looked = self._measuring.has_begun or self.groups or self._waited is not None
        # In shards the neurons before a step are gathered before it begins: what was the first must stay it.
        if has_looked or self._recording.obstacle or self.finding.sharding != "whole":
            return False
        tapes = self._recording.so_far()
        is_idle = not self.finding.is_complete and not tapes
        if self._training.ranks.first("whether it is idle", lambda: is_idle and self._steps.has_stood):
            self._idle.append(step)
            self._steps.advance()
            return True
        is_refused = all(tape.obstacle and not runs_compiled_code(tape) for tape in tapes)
        reason = self._training.ranks.first(
            "whether to wait", lambda: tapes[0].obstacle if tapes and is_refused else ""
        )
        if not reason:
            return False
        self._waited = step, reason
        self._steps.advance()  # the tapes stay: they say why, should no other step come
        return True

    def begin(self, step: int) -> Snapshots:
        """Look at the neurons of the recorded step from now on."""
        if self.groups and self._training.ranks.first(
            "whether losses have followed", lambda: len(self._recording.so_far()) > self._n_followed
        ):
            self.groups = ()  # a guard has asked for them at an earlier update: they must hold for all losses
        snapshots = self._look(())
        for idle in self._idle:
            self._measuring.rest(idle)
        if self._waited is not None:
            self._measuring.leave_open(self._waited[0])
            self._exchange.events.append(left_open(*self._waited, self._training.epoch))
        snapshots.begun_at(step, self._shards)
        self._shards = None
        self._unused.see(step)  # another loss, or another process, may have used them
        return snapshots

    def begin_again(self, step: int) -> bool:
        """Look at those of a module that has other parameters now than in the first step, or uses others.

        False where this step does not show what is looked for: the next one may. A collective.
        """
        assert self._measuring.snapshots is not None
        if not self._replaces and not self._shows_unused():
            self._n_tries += 1
            if self._n_tries == MOST_TRIES:
                self._end_tries(step)
            return False
        self._end_tries(step)
        snapshots, known, since = self._measuring.snapshots, self.groups, self._unused.moved_since
        self.groups = ()
        changed = snapshots.changed()
        join = joined if not self._replaces else partial(renewed, changed=changed)
        # Neurons whose parameters are gone are no more: their steps are not open.
        remaining = [group for group in known if changed.isdisjoint(group.parameter_names)]
        self._look(remaining, join if snapshots.sharding == "whole" else None).take_over(snapshots, step)
        if self._joined is not None:  # that step has moved them unseen
            self._measuring.leave_open(self._joined[0], list(self._joined[1]))
            self._joined = None
        self._tell_used(known, since, step)
        self._unused.see(step)
        return True

    def _shows_unused(self) -> bool:
        """Whether this step uses some of the parameters that are looked for. A collective."""
        wanted = self._unused.moved_since.keys()
        tapes = self._recording.so_far()
        return self._training.ranks.first(
            "whether it is used", lambda: any(not wanted.isdisjoint(tape.params) for tape in tapes)
        )

    def _end_tries(self, step: int) -> None:
        self.is_again_wanted, self._n_tries = False, 0
        self._unused.looked(step)

    def _tell_used(self, known: Sequence[NeuronGroup], since: Mapping[str, int], step: int) -> None:
        """Say which groups are new, or have more coordinates, for parts that are used now."""
        before = {group.name: group.slices for group in known}
        changed = [group for group in self.groups if before.get(group.name) != group.slices]
        firsts = {g.name: min(since[p] for p in g.parameter_names if p in since) for g in changed if _meets(g, since)}
        for name, first in firsts.items():
            if name not in before and first < step:
                self._measuring.open_past(name, first, step - 1)
        if firsts:
            used = [group for group in changed if group.name in firsts]
            event = parts_used(
                used, min(firsts.values()), step, self._training.epoch, is_guarded=bool(self._steps.guards)
            )
            self._exchange.events.append(event)

    def follow_members(self, step: int) -> bool:
        """Take in which parameters joined or left the training in this step, and which unused ones it has moved.

        Those that join and are in no group may have been left out because they were not trained, and others because the
        recorded steps did not use them: they are looked for once more. True where some have joined or left.
        """
        assert self._measuring.snapshots is not None
        assert self._membership is not None
        change = self._membership.change(step)
        if gone := self._take_gone() - (frozenset() if change is None else change.names):
            change = replace(change or Change(), gone=gone, are_new=True)
        self._unused.see(step)
        if change is not None:
            alone = (change.joined | change.changed | change.replaced).difference(
                self._looked_for, *(group.parameter_names for group in self.groups)
            )
            self._looked_for |= alone
            self._joined = (step, alone) if alone else None
            are_wanted = change.are_new or bool(alone)
            if are_wanted:
                self.is_again_wanted = self._replaces = True  # on the next step as it runs
            groups = self._measuring.snapshots.refer_from(step, change.names)
            self._n_said[change] += 1
            comes_back, epoch = self._n_said[change] == MOST_SAID, self._training.epoch
            if self._n_said[change] <= MOST_SAID:
                self._exchange.events.append(
                    members_changed(change, groups, step, epoch, are_looked_for=are_wanted, comes_back=comes_back)
                )
        elif not self.is_again_wanted and self._wants_unused(step):
            self.is_again_wanted, self._replaces = True, False
        return change is not None

    def _take_gone(self) -> frozenset[str]:
        """Parts of watched neurons that are not what they were, each once."""
        assert self._measuring.snapshots is not None
        changed = self._measuring.snapshots.changed() - self._told_gone
        gone = changed.intersection(p for group in self.groups for p in group.parameter_names) if changed else changed
        self._told_gone |= gone
        return gone

    @property
    def moves_unknown(self) -> bool:
        """Whether the last step has moved parameters whose neurons no recorded step has shown."""
        return self._unused.is_moving

    def _wants_unused(self, step: int) -> bool:
        """Whether parts that the recorded steps did not use have moved. A collective, now and then."""
        if not self._has_unused:
            return False
        wants = self._unused.wants_look(step)
        if self._training.ranks.size == 1:
            return wants
        return step % EXCHANGE_STEPS == 0 and self._training.ranks.first("whether unused parts move", lambda: wants)

    def report_problems(self, step: int) -> None:
        """Report which groups are without proof."""
        for k, problem in enumerate(self.finding.problems):  # numbered: several may belong to no group
            self._exchange.fail(f"neurons {k}", problem.group, problem.message, problem.remedy, step)

    def _look(self, known: Sequence[NeuronGroup], join: Join | None = None) -> Snapshots:
        """Find the neurons on the recorded step, and measure them instead of those `known` before."""
        self.find(join)
        self._probing.order.update({group.name: k for k, group in enumerate(self.groups)})
        snapshots = Snapshots(self._training, self._steps, self.groups, self._training_loss)
        names = {group.name for group in self.groups}
        lost = [group.name for group in known if group.name not in names]
        proved = {group.name for group in self.groups if group.status == "verified"}
        self._measuring.look_at(snapshots, self._steps, lost, keeps_merged=proved - self.finding.drawn)
        self._exchange.certifies = bool(self.groups) and self._measuring.certifies
        self._exchange.are_replicas = snapshots.sharding == "whole"
        self._membership = Membership(self._training.module, self._steps)
        self._told_gone = set()
        # In shards there is no telling by their counters which have moved.
        self._has_unused = snapshots.sharding == "whole" and any(c.reason == UNUSED for c in self.finding.coverage)
        names = [one.param for one in self.finding.uncovered if one.reason == UNUSED] if self._has_unused else []
        self._unused.follow(names, self._training.module)
        return snapshots


def _meets(group: NeuronGroup, names: Mapping[str, int]) -> bool:
    return not names.keys().isdisjoint(group.parameter_names)
