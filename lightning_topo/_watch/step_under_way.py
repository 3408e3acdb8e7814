"""A training step as it runs: its losses, their gradients and its updates, recorded and measured where that is due."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_topo._tape.names import clean_name
from lightning_topo._watch.measuring import Measuring
from lightning_topo._watch.messages import update_left
from lightning_topo._watch.movements import Movements
from lightning_topo._watch.probing import Probing, needs_gradient_scales
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo._watch.updates import Update
from lightning_topo._watch.watched_neurons import WatchedNeurons
from lightning_topo.phases import TopologyEvent
from lightning_topo.stability._recognition import check_step


class StepUnderWay:
    """Follows one step of the training after another from the beginning of its batch to its end.

    A step is recorded if neurons are to be found on it, or a probe is due that wants its tapes. How gradients are
    scaled on their way to the optimizers, and whether these step by their rules, is measured for probes that ask.
    """

    def __init__(
        self,
        training: Training,
        steps: Steps,
        movements: Movements,
        recording: Recording,
        probing: Probing,
        measuring: Measuring,
        neurons: WatchedNeurons,
    ) -> None:
        self._training, self._steps, self._movements, self._recording = training, steps, movements, recording
        self._probing, self._measuring, self._neurons = probing, measuring, neurons
        self._is_first = True  # no update was seen yet
        self._left_alone: Mapping[str, Tensor] = {}
        self._frozen_beside: tuple[int, frozenset[str]] | None = None  # which generation, and what was trained

    def begin(self, batch: Any) -> None:
        """A batch begins; it is kept while its step is looked at."""
        self.break_off()  # of a batch that was left out no end was seen
        self._steps.begin()
        self._steps.gradients.begin_batch()
        self._movements.before_batch(self._steps)
        if self._is_first:
            self._steps.keep(self._training.optimizers)
        step = self._training.step + 1
        due = self._measuring.due("step", step)
        finds = self._neurons.wants_step
        is_wanted = finds or any(map(self._probing.wants_own_step, due))
        self._neurons.before_step()
        if (snapshots := self._measuring.snapshots) is not None:
            snapshots.before_step(step, due)  # shards are copied before anything is recorded
        self._recording.begin(batch, step, wanted=is_wanted, for_neurons=finds, copies=self._lent_copies)
        are_whole = self._neurons.finding.sharding == "whole"
        self._steps.gradients.want(are_whole and any(map(needs_gradient_scales, due)))

    def loss(self, loss: Tensor, scale: float, *, in_engine: bool) -> None:
        """A loss is about to be differentiated; arguments as those of `Recording.loss`."""
        self._recording.loss(loss, scale, in_engine=in_engine)
        if self._is_first:
            self._steps.keep(self._training.optimizers)  # lazy parameters have their shapes now
        self._steps.gradients.loss(loss, scale, self._optimizers())

    def differentiated(self, *, goes_on: bool, in_engine: bool) -> None:
        """A gradient is there; arguments as those of `Recording.differentiated`."""
        self._recording.differentiated(goes_on=goes_on, is_stepping=self._steps.is_stepping, in_engine=in_engine)
        if self._steps.gradients.wanted:
            self._steps.gradients.differentiated(self._optimizers())

    def made(self, update: Update) -> None:
        """An update was just made: compare it with the optimizer's rule where a probe relies on that."""
        self._measuring.frozen.updated(self._frozen())
        if self._steps.gradients.wanted:
            check_step(update.optimizer, {id(p): update.before[name] for name, p in update.after.items()})

    def break_off(self) -> None:
        """The batch is left in the middle: nothing more of it is recorded."""
        self._recording.end()

    def end(self) -> bool:
        """The batch is over; returns whether it has led to an update. A collective as `Movements.has_stepped` is."""
        if tapes := self._recording.end():
            self._steps.gradients.recorded(tapes, self._optimizers(), self._recording.parameters())
        self._steps.take_deferred()  # unless an update has come since
        has_stepped = self._movements.has_stepped(self._steps, self._training.step + 1)
        self._is_first = self._is_first and not has_stepped
        return has_stepped

    def left_over(self, step: int) -> list[TopologyEvent]:
        """Events on updates that came after the last step."""
        return [update_left(update, step, self._training.epoch) for update in self._steps.pending[-1:]]

    def _frozen(self) -> Mapping[str, Tensor]:
        """The parameters that no optimizer trains, where these are whole."""
        if self._neurons.finding.sharding != "whole":
            return {}
        trained = frozenset(self._steps.trained())
        if self._frozen_beside != (self._steps.generation, trained):
            self._frozen_beside = self._steps.generation, trained
            named = {clean_name(name): p for name, p in self._training.module.named_parameters()}
            self._left_alone = {name: p for name, p in named.items() if name not in trained}
        return self._left_alone

    def _optimizers(self) -> list[Optimizer]:
        return list({id(o): o for o in (*self._training.optimizers, *self._steps.optimizers)}.values())

    def _lent_copies(self) -> Mapping[int, Tensor]:
        """Copies of the present parameters for the recorder."""
        self._steps.take_deferred()
        return self._steps.lend()
