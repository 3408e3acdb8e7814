"""What this process sees of the network at one step: its share of the groups, and where the step began."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_topo.callbacks.ranks import Ranks
from lightning_topo.callbacks.training_loss import training_loss
from lightning_topo.homology import Worker
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons.capture import Sharding, gather_clouds, sharding
from lightning_topo.probes import Capture, Clouds, Probe, ProbeResult


def sharded_root(trainer: Trainer, module: LightningModule) -> nn.Module:
    """The module from which whole parameters can be had: FSDP1's outermost wrapper, or the user's own."""
    model = trainer.strategy.model
    return model if isinstance(model, FullyShardedDataParallel) else module


class Capturing:
    """Takes the clouds of one training, group k on process k % world, and keeps those from before a step.

    `clouds` and `before_step` are collectives where parameters are sharded; where every process has them whole,
    nothing travels. A process holds the clouds of its own groups, and no others.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        groups: Sequence[NeuronGroup],
        batch: Any,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.groups = tuple(groups)
        self.own = tuple(group for k, group in enumerate(groups) if ranks.owns(k))
        self.reference: Mapping[str, Tensor] = {}
        self.worker: Worker | None = None  # what is measured at the start is wanted at once
        self._trainer, self._module, self._batch, self._seed = trainer, module, batch, seed
        self._root = sharded_root(trainer, module)
        self.sharding: Sharding = sharding(self._root)
        self._before: tuple[int, Clouds] | None = None
        self._parameters_before: tuple[int, Mapping[str, Tensor]] | None = None

    @property
    def epoch(self) -> int:
        """The present epoch."""
        return self._trainer.current_epoch

    def clouds(self) -> Clouds:
        """The neurons as they stand; where no process needs another for it, gathered when first asked for."""
        if self.sharding == "whole":
            return Clouds(self.groups, self.parameters() or {})
        here, failures = gather_clouds(self._root, self.groups, [group.name for group in self.own])
        return Clouds((), {}, here, failures)

    def own_clouds(self, clouds: Clouds) -> Clouds:
        """This process's share of them, gathered."""
        return clouds.gather(group.name for group in self.own)

    def parameters(self) -> dict[str, Tensor] | None:
        """The parameters where every process has them whole."""
        return dict(self._module.named_parameters()) if self.sharding == "whole" else None

    def before_step(self, due: Sequence[Probe], step: int) -> None:
        """Keep what these probes need from before a step, unless the last capture stands just there."""
        if (self._before is None or self._before[0] != step - 1) and any(needs_step(probe) for probe in due):
            self._before = (step - 1, self.own_clouds(self.clouds()))
        at = None if self._parameters_before is None else self._parameters_before[0]
        if at != step - 1 and any(_needs_parameters_before(probe) for probe in due):
            trainable = {n: p.detach().clone() for n, p in self._module.named_parameters() if p.requires_grad}
            self._parameters_before = (step - 1, trainable)

    def after_step(self, measured: Sequence[Probe], step: int, now: Clouds) -> None:
        """Keep what the next step will begin with."""
        if any(needs_step(probe) for probe in measured):
            self._before = (step, self.own_clouds(now))
        self._parameters_before = None

    def capture(self, probe: Probe, step: int, now: Clouds, previous: ProbeResult | None) -> Capture:
        """What one probe is given."""
        before = self._before[1] if self._before is not None and self._before[0] == step - 1 else None
        at, parameters = self._parameters_before or (None, None)
        return Capture(
            step=step,
            epoch=self._trainer.current_epoch,
            module=self._module,
            groups=self.own if is_divided(probe) else self.groups,
            neurons=now,
            before=before,
            reference=self.reference,
            optimizers=self._trainer.optimizers,
            training_loss=lambda loss_fn: training_loss(self._trainer, self._module, self._batch, loss_fn, self._seed),
            previous=previous,
            parameters_before=parameters if at == step - 1 and _needs_parameters_before(probe) else None,
            sharding=self.sharding,
            worker=self.worker,
        )


def is_divided(probe: Probe) -> bool:
    """Whether the probe looks at each group by itself, so that processes can share the work."""
    return getattr(probe, "by_group", False)


def needs_step(probe: Probe) -> bool:
    """Whether the probe measures a step, and not a state."""
    return getattr(probe, "measures_steps", False)


def _needs_parameters_before(probe: Probe) -> bool:
    """Whether the probe looks at where the whole step began."""
    return getattr(probe, "needs_parameters_before", False)
