"""Reaching into transformers' Trainer: undone when training ends, however it ends."""

from types import SimpleNamespace

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


def test_a_row_of_ours_does_not_decide_whether_the_trainer_logs():
    """`Trainer.log` ends in callbacks that may set `should_log`; the trainer's own rows are its own business."""
    for wanted in (True, False):
        control = SimpleNamespace(should_log=wanted)
        rows = []
        trainer = SimpleNamespace(control=control)
        trainer.log = lambda row, rows=rows, control=control, wanted=wanted: (
            rows.append(row),
            setattr(control, "should_log", not wanted),
        )
        TrainerLog(trainer).log_metrics({"topology/critical_ratio": 0.5}, step=3)
        assert rows == [{"topology/critical_ratio": 0.5}]
        assert control.should_log is wanted
