"""Find the neurons of a network from a few recorded trial losses, and its loss on training samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer

from lightning_topo._watch.finding import Finding
from lightning_topo._watch.gradient_scales import GradientScales
from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.training_loss import ENOUGH_SAMPLES, TrainingLoss
from lightning_topo.callbacks._trainer_training import TrainerTraining
from lightning_topo.callbacks._trial_batches import trial_batches
from lightning_topo.callbacks._trial_steps import on_trial, record_loss
from lightning_topo.neurons import NeuronGroup

_MOST_BATCHES = 64


@dataclass(frozen=True, slots=True)
class TrialLook:
    """The verified groups with something to measure; the problems, in words; the loss on recorded samples.

    `scales` knows by how much hooks scale the gradient, and measures in trial steps how much clipping does.
    """

    groups: tuple[NeuronGroup, ...]
    problems: str
    loss: TrainingLoss
    ranks: Ranks
    scales: GradientScales

    @classmethod
    def of(
        cls, trainer: Trainer, module: LightningModule, declared: Sequence[NeuronGroup] | None, seed: int
    ) -> "TrialLook":
        """Compute the loss on the first batches, recorded: 256 samples, or all. A collective.

        Nothing is updated, and everything is afterwards as it was.
        """
        training = TrainerTraining(trainer, module)
        ranks, finding = training.ranks, Finding(training, declared, seed)
        loss = TrainingLoss(training, seed)
        with on_trial(trainer, module, seed):
            recording, drawn = Recording(training, loss, runs_eagerly=True), trial_batches(trainer)
            for batch in _of_all(trainer, ranks, [next(drawn)]):
                record_loss(trainer, module, batch, recording)
            tapes = recording.so_far()
            usable = [tape.n_samples for tape in tapes if not tape.obstacle]
            n_more = ranks.first("samples", lambda: _n_more(trainer, usable[0] * ranks.size) if usable else 0)
            for batch in _of_all(trainer, ranks, list(islice(drawn, n_more))):
                record_loss(trainer, module, batch, recording)
        groups, scales = finding.groups(tapes, recording.obstacle), GradientScales()
        scales.wanted = True
        scales.recorded(tapes, trainer.optimizers, recording.parameters())
        return cls(groups, " ".join(problem.message for problem in finding.problems), loss, ranks, scales)


def _n_more(trainer: Trainer, n_samples: int) -> int:
    """How many batches, beside the first, each process draws for enough samples: no more than the data have."""
    most = min(_MOST_BATCHES, trainer.num_training_batches)
    return max(0, min(math.ceil(ENOUGH_SAMPLES / max(1, n_samples)), int(most)) - 1)


def _of_all(trainer: Trainer, ranks: Ranks, batches: list[Any]) -> list[Any]:
    """The batches of all processes, on each: all measure the same loss."""
    if ranks.size == 1:
        return batches
    every = ranks.all("trial batches", move_data_to_device(batches, torch.device("cpu")))
    return move_data_to_device([batch for theirs in every for batch in theirs], trainer.strategy.root_device)
