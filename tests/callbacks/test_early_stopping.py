"""Gates on real trainings: ours, and Lightning's own over our keys."""

import logging

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_topo import Distortion, Fate, Persistence, Sharpness, TopologyEarlyStopping, TopologyMonitor, read_record
from lightning_topo.outputs._gates import unseen_events
from lightning_topo.phases import EventName
from tests.callbacks.training import Classifier, fit, happened, loader

BREAKDOWN = "topology_breakdown"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Kick(L.Callback):
    """Makes the steps into which it is told to kick far too large."""

    def __init__(self, *steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        lr = 3000.0 if trainer.fit_loop.epoch_loop._batches_that_stepped + 1 in self.steps else 1e-3
        for group in optimizer.param_groups:
            group["lr"] = lr


def watcher(**options):
    return TopologyMonitor(
        **({"probes": [Distortion(every_n_steps=1)], "report": False, "on_error": "raise"} | options)
    )


def stop_step(trainer):
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def test_parameters_are_checked():
    for options, match in (
        ({"stop_on": "topology_brakedown"}, "topology_breakdown, .*got 'topology_brakedown'"),
        ({"stop_on": ["gap", "nothing"]}, "got 'nothing'"),
        ({"stop_on": ()}, "a patience"),
        ({"min_count": 0}, "min_count"),
        ({"patience": 0}, "patience"),
        ({"min_epochs": -1}, "min_epochs"),
        ({"tolerance": -1.0}, "tolerance"),
    ):
        with pytest.raises(ValueError, match=match):
            TopologyEarlyStopping(**options)
    assert TopologyEarlyStopping(EventName.GAP).rules == TopologyEarlyStopping(["gap"]).rules
    assert TopologyEarlyStopping("gap").state_key != TopologyEarlyStopping("gap", min_count=2).state_key


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("stop_on", [BREAKDOWN, EventName.TOPOLOGY_BREAKDOWN, ["gap", BREAKDOWN]], ids=str)
def test_it_stops_at_the_very_step_and_says_why(tmp_path, gate_first, stop_on, caplog):
    monitor, gate = watcher(), TopologyEarlyStopping(stop_on)
    callbacks = [gate, monitor, Kick(11)] if gate_first else [monitor, gate, Kick(11)]
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO):
        trainer = fit(Classifier(), callbacks, root=tmp_path, max_epochs=4, logger=logger, log_every_n_steps=50)
    assert stop_step(trainer) == 11
    assert "topology_breakdown at step 11 in net." in gate.stopping_reason
    assert gate.stopping_reason_message == gate.stopping_reason
    assert gate.stopped_epoch == 1
    assert gate.stopping_reason in caplog.text
    (line,) = [m for m in read_record(monitor.dirpath).measurements if m.probe == "gate"]
    assert (line.step, line.epoch, line.group) == (11, 1, "")
    assert line.values == {"stopped": 1.0, "quiet_captures": 0.0, BREAKDOWN: len(happened(monitor.events))}
    assert trainer.callback_metrics["topology/stopped"] == 1.0
    logger.save()
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "topology/stopped" in rows[0].split(",")


def test_a_quiet_training_is_not_stopped(tmp_path):
    # Parameters in no group are said of nearly every network, and are nothing that happens in training.
    left_out = {EventName.UNWATCHED_PARAMETERS, *unseen_events(EventName, {"distortion"})}
    gate = TopologyEarlyStopping([name for name in EventName if name not in left_out])
    trainer = fit(Classifier(lr=1e-3), [watcher(), gate], root=tmp_path, max_epochs=2)
    assert stop_step(trainer) == 16
    assert gate.stopping_reason is None
    assert "topology/stopped" not in trainer.callback_metrics


def test_min_count_and_groups(tmp_path):
    """Each group breaks down once: two events in all."""
    for options, stops in (
        ({"min_count": 2}, True),
        ({"min_count": 3}, False),
        ({"min_count": 2, "groups": "net.0"}, False),
        ({"groups": ["net.[3-9]"]}, True),
    ):
        monitor, gate = watcher(), TopologyEarlyStopping(BREAKDOWN, **options)
        fit(Classifier(), [monitor, gate, Kick(3)], root=tmp_path)
        assert {e.group for e in monitor.events if e.name == BREAKDOWN} == {"net.0", "net.3"}
        assert (gate.stopping_reason is not None) == stops, options
    with pytest.warns(UserWarning, match=r"no group of neurons fits 'nte.0'; there are \['net.0', 'net.3'\]"):
        fit(Classifier(), [watcher(), TopologyEarlyStopping(groups="nte.0")], root=tmp_path)


@pytest.mark.parametrize("gate_first", [True, False])
def test_min_epochs(tmp_path, gate_first):
    monitor, gate = watcher(), TopologyEarlyStopping(BREAKDOWN, min_epochs=3)
    callbacks = [gate, monitor, Kick(3)] if gate_first else [monitor, gate, Kick(3)]
    trainer = fit(Classifier(), callbacks, root=tmp_path, max_epochs=5)
    assert stop_step(trainer) == 24
    assert gate.stopped_epoch == 2
    trainer = fit(
        Classifier(), [watcher(), TopologyEarlyStopping(), Kick(3)], root=tmp_path, max_epochs=5, min_epochs=2
    )
    assert stop_step(trainer) == 16


def test_patience(tmp_path):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1)]
    gate = TopologyEarlyStopping((), patience=3)
    trainer = fit(Classifier(lr=1e-3), [watcher(probes=probes), gate, Kick(20)], root=tmp_path, max_epochs=9)
    # Captures at 8, 16; the third epoch is kicked, and its new Betti numbers stand at 32; then 40, 48, 56 are quiet.
    assert stop_step(trainer) == 56
    assert "3 captures in a row" in gate.stopping_reason


def test_it_needs_a_monitor(tmp_path):
    with pytest.raises(MisconfigurationException, match="add one"):
        fit(Classifier(), [TopologyEarlyStopping()], root=tmp_path)
    with pytest.raises(MisconfigurationException, match="Persistence"):
        fit(Classifier(), [watcher(), TopologyEarlyStopping(patience=1)], root=tmp_path)
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True, callbacks=[TopologyEarlyStopping()])
    trainer.predict(Predicting(), loader())


class Predicting(Classifier):
    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def test_a_trial_run_is_not_stopped(tmp_path):
    gate = TopologyEarlyStopping()
    trainer = fit(Classifier(), [watcher(), gate, Kick(1)], root=tmp_path, fast_dev_run=3)
    assert trainer.global_step == 3
    assert gate.stopping_reason is None


def test_the_same_gate_serves_again(tmp_path):
    gate = TopologyEarlyStopping(min_count=3)
    for _ in range(2):
        fit(Classifier(), [watcher(), gate, Kick(3)], root=tmp_path)
        assert gate.stopping_reason is None


def test_validation_does_not_count_twice(tmp_path):
    class Validated(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.net(batch[0]).square().mean())

        def val_dataloader(self):
            return loader()

    gate = TopologyEarlyStopping(min_count=3)
    fit(Validated(), [watcher(), gate, Kick(3)], root=tmp_path, val_check_interval=2, max_epochs=3)
    assert gate.stopping_reason is None
    gate = TopologyEarlyStopping((), patience=4)
    callbacks = [watcher(probes=[Persistence(every_n_epochs=1)]), gate]
    trainer = fit(Validated(lr=1e-4), callbacks, root=tmp_path, val_check_interval=2, max_epochs=9)
    assert stop_step(trainer) == 40  # the capture at 8 has none before it


# --- resume -----------------------------------------------------------------------------------------------------------


class SaveAt(L.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if stop_step(trainer) + 1 == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_training_stops_where_the_whole_one_does(tmp_path):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1)]
    for options, save, stops, again in (
        # The first capture of a fit has none before it: it is not known to be quiet, and does not count.
        ({"stop_on": (), "patience": 4}, 16, 40, 48),
        ({"stop_on": (), "patience": 4}, 21, 40, 48),
        ({"min_count": 2}, 8, 24, 24),
    ):
        path = tmp_path / f"{save}-{stops}.ckpt"
        kick = Kick(*([] if "patience" in options else [24]))
        first = TopologyEarlyStopping(**options)
        callbacks = [watcher(probes=probes), first, kick, SaveAt(path, save)]
        torch.manual_seed(0)
        trainer = fit(Classifier(), callbacks, root=tmp_path, max_epochs=7)
        assert stop_step(trainer) == stops
        assert torch.load(path, weights_only=True)["callbacks"][first.state_key]["stopping_reason"] is None
        second = TopologyEarlyStopping(**options)
        callbacks = [watcher(probes=probes), second, kick]
        trainer = fit(Classifier(), callbacks, root=tmp_path, max_epochs=7, ckpt_path=path)
        assert stop_step(trainer) == again
        assert second.stopping_reason == first.stopping_reason.replace(f"step {stops}", f"step {again}")


def test_what_was_stopped_can_be_resumed(tmp_path):
    monitor, gate = watcher(), TopologyEarlyStopping(min_count=2)
    trainer = fit(Classifier(), [monitor, gate, Kick(3)], root=tmp_path, max_epochs=4)
    assert gate.stopping_reason is not None
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = TopologyEarlyStopping(min_count=2)
    trainer = fit(
        Classifier(), [watcher(), again, Kick()], root=tmp_path, max_epochs=4, ckpt_path=tmp_path / "last.ckpt"
    )
    assert again.stopping_reason is None
    assert trainer.current_epoch == 4


# --- Lightning's own --------------------------------------------------------------------------------------------------


def everything():
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
    return watcher(probes=probes, max_overhead=None)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Every key that is there after the first epoch: the second adds those that compare with a capture before."""
    trainer = fit(Classifier(), [everything()], root=tmp_path_factory.mktemp("keys"), max_epochs=1)
    found = [key for key in trainer.callback_metrics if key.startswith("topology/")]
    assert len(found) > 30
    return found


class Watching(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Remembers what it was given."""

    def step(self, metrics, epoch=None):
        self.seen = [*getattr(self, "seen", []), float(metrics)]
        super().step(metrics)


class Plateaus(Classifier):
    """Lowers its learning rate by every key, and validates."""

    def __init__(self, keys):
        super().__init__(lr=1e-3)
        self.keys = keys

    def configure_optimizers(self):
        optimizer = self.make_optimizer()
        return [optimizer], [{"scheduler": Watching(optimizer), "monitor": key, "strict": True} for key in self.keys]

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch[0]).square().mean())

    def val_dataloader(self):
        return loader(8)


class AtEpochEnd(L.Callback):
    """What stands under the keys when an epoch is over."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, *_):
        self.seen.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("at_epoch_end", [True, False], ids=["epoch", "validation"])
def test_lightnings_own_callbacks_and_schedulers_work_with_every_key(tmp_path, keys, monitor_first, at_epoch_end):
    gates = [
        EarlyStopping(key, patience=99, strict=True, check_on_train_epoch_end=at_epoch_end, check_finite=True)
        for key in keys
    ]
    savers = [
        ModelCheckpoint(tmp_path / "c", monitor=key, filename=str(at), save_on_train_epoch_end=at_epoch_end)
        for at, key in enumerate(keys)
    ]
    monitor, look = everything(), AtEpochEnd()
    others = [look, *gates, *savers]
    callbacks = [monitor, *others] if monitor_first else [*others, monitor]
    trainer = fit(Plateaus(keys), callbacks, root=tmp_path, max_epochs=2, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    for key, gate, saver, config in zip(keys, gates, savers, trainer.lr_scheduler_configs, strict=True):
        seen = [values[key] for values in look.seen]
        assert len(seen) == 2
        if key == "topology/overhead":  # changes from hook to hook
            assert 0.0 < float(gate.best_score) < 1.0
            continue
        assert float(gate.best_score) == min(seen), key
        assert float(saver.best_model_score) == min(seen), key
        assert config.scheduler.seen == seen, key


@pytest.mark.parametrize("blind", [True, False])
def test_a_gate_says_in_how_many_steps_it_was_blind(tmp_path, monkeypatch, blind):
    for name in ("EXACT_SHARE", "EXACT_STEPS"):
        monkeypatch.setattr(f"lightning_topo._watch.budget.{name}", 0.0)
    said = []
    monkeypatch.setattr("lightning_topo.callbacks._early_stopping.rank_zero_warn", said.append)
    kicks = range(5, 9) if blind else ()  # above critical, and nothing may be measured
    callbacks = [Kick(*kicks), watcher(probes=[Distortion(every_n_steps=1000)]), TopologyEarlyStopping(BREAKDOWN)]
    trainer = fit(Classifier(lr=0.01), callbacks, root=tmp_path, max_steps=8)
    share = 1.0 - float(trainer.callback_metrics["topology/coverage"])
    assert share == (pytest.approx(0.5) if blind else 0.0)
    assert [message.split(": ")[0] for message in said] == (
        ["TopologyEarlyStopping was blind in 50% of the steps"] if blind else []
    )


@pytest.mark.parametrize(
    ("probe", "rules"),
    [
        (Fate, {"stop_on": ["instability", "neurons_condensing"]}),
        (Persistence, {"stop_on": "betti_changed"}),
        (Persistence, {"stop_on": None, "patience": 3}),
    ],
)
@pytest.mark.parametrize("every", [1000, 2])
def test_a_gate_says_that_its_probe_has_not_looked_twice(tmp_path, monkeypatch, probe, rules, every):
    said = []
    monkeypatch.setattr("lightning_topo.callbacks._early_stopping.rank_zero_warn", said.append)
    gate = TopologyEarlyStopping(**rules)
    fit(Classifier(lr=0.01), [watcher(probes=[probe(every_n_steps=every)]), gate], root=tmp_path, max_steps=8)
    if gate.stopping_reason is None:
        assert [f"{probe().name!r} measured" in message for message in said] == ([True] if every == 1000 else [])
    else:
        assert every == 2
