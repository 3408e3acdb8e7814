"""Reaching into transformers' Trainer: undone when training ends, however it ends."""

import pytest
import transformers

from lightning_topo.loops._session import LoopSession
from lightning_topo.loops._trainer_seams import TrainerLog, closing, wrap_backward
from tests.loops.loops import losses, trainer_of, watched


def test_the_backward_is_wrapped_while_it_trains_and_as_it_was_afterwards(tmp_path):
    trainer = trainer_of(tmp_path)
    before = trainer.accelerator.backward
    seen = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append("backward" in trainer.accelerator.__dict__)

    callback = watched(trainer)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [True] * 16
    assert "backward" not in trainer.accelerator.__dict__
    assert trainer.accelerator.backward == before
    assert max(m.step for m in callback.record.measurements if m.probe == "coverage") == 16


def test_an_exception_in_the_loop_closes_the_record_and_unwraps_the_backward(tmp_path):
    class Breaks(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyError("mine")

    trainer = trainer_of(tmp_path)
    callback = watched(trainer)
    trainer.add_callback(Breaks())
    with pytest.raises(KeyError, match="mine"):
        trainer.train()
    assert "backward" not in trainer.accelerator.__dict__
    assert len(losses(callback)) == 4
    assert max(m.step for m in callback.record.measurements if m.probe == "coverage") == 4
    # The same trainer goes on to a training of its own, with a record of its own.
    first = callback.watch.dirpath
    trainer.remove_callback(Breaks)
    trainer.train()
    assert callback.watch.dirpath != first
    assert len(losses(callback)) == 16


def test_a_training_is_closed_once_whether_it_returns_or_raises():
    closed = []

    def train(answer):
        """Trains."""
        if answer is None:
            raise KeyError("mine")
        return answer

    wrapped = closing(train, lambda: closed.append("closed"))
    assert (wrapped(3), closed) == (3, ["closed"])
    with pytest.raises(KeyError, match="mine"):
        wrapped(None)
    assert closed == ["closed"] * 2
    assert wrapped.__doc__ == "Trains."


def test_a_backward_that_another_has_wrapped_besides_is_left_to_them(tmp_path):
    trainer = trainer_of(tmp_path)
    undo = wrap_backward(trainer, LoopSession.__new__(LoopSession))  # nothing is asked of it
    theirs = trainer.accelerator.backward = lambda loss: None
    undo()
    assert trainer.accelerator.backward is theirs
    undo()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_row_of_ours_does_not_decide_whether_the_trainer_logs(tmp_path, wanted):
    """`Trainer.log` ends in callbacks that may set `should_log`; the trainer's own rows are its own business."""

    class Turns(transformers.TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            control.should_log = not wanted

    trainer = trainer_of(tmp_path)
    trainer.add_callback(Turns())
    trainer.control.should_log = wanted
    TrainerLog(trainer).log_metrics({"topology/critical_ratio": 0.5}, step=3)
    assert trainer.state.log_history[-1]["topology/critical_ratio"] == 0.5
    assert trainer.control.should_log is wanted


def test_metrics_that_a_trainer_hands_out_when_it_logs_stay_in_its_own_rows(tmp_path):
    """As TRL's trainers do: what they have gathered goes into the next row, and is cleared."""

    class Gathering(transformers.Trainer):
        gathered = 0

        def training_step(self, *args, **kwargs):
            self.gathered += 1
            return super().training_step(*args, **kwargs)

        def log(self, logs, *args, **kwargs):
            super().log({**logs, "gathered": self.gathered}, *args, **kwargs)
            self.gathered = 0

    def rows(folder, has_callback):
        trainer = trainer_of(folder, logging_steps=4)
        trainer.__class__ = Gathering
        if has_callback:
            watched(trainer)
        trainer.train()
        found = trainer.state.log_history
        assert any("topology/phase" in row for row in found) is has_callback
        return [row for row in found if not any(key.startswith("topology/") for key in row)]

    def told(found):
        return [(row["step"], row["gathered"], row.get("loss")) for row in found]

    plain = told(rows(tmp_path / "plain", has_callback=False))
    assert plain[0][1] > 0
    assert told(rows(tmp_path / "watched", has_callback=True)) == plain
