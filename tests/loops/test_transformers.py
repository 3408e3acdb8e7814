"""The door for transformers' Trainer, on a small GPT-2 of random weights and on the network of the other doors."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.data import Dataset

from lightning_topo import Distortion, Persistence
from tests.callbacks.training import happened
from tests.loops.by_hand import LIMIT, by_step, lines, ratio
from tests.loops.loops import losses, trainer_of, watched, weights


class Kick(transformers.TrainerCallback):
    """Makes one step far too large."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = 3000.0 if state.global_step + 1 == self.step else 0.1


class Weights(transformers.TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(weights(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(weights(model))


# --- a language model -------------------------------------------------------------------------------------------------


class Tokens(Dataset):
    def __init__(self):
        self.ids = torch.randint(0, 32, (32, 12), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def language_model(folder, **arguments):
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 32, "bos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=0))
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 4,
    }
    made = transformers.TrainingArguments(**(defaults | arguments))
    return transformers.Trainer(model, made, train_dataset=Tokens())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_language_model_is_watched_and_its_weights_and_log_are_those_without(tmp_path, accumulate):
    plain = language_model(tmp_path / "plain", gradient_accumulation_steps=accumulate)
    plain.train()
    trainer = language_model(tmp_path / "watched", gradient_accumulation_steps=accumulate)
    callback = watched(trainer, groups="auto", probes=None, on_error="warn", report=accumulate == 1)
    trainer.train()
    found = weights(trainer.model)
    assert all(torch.equal(found[name], p) for name, p in weights(plain.model).items())
    n_steps = 16 // accumulate
    assert len(losses(callback)) == n_steps
    assert 2.0 < min(losses(callback)) < 4.0  # about log 32, whatever is accumulated
    assert {m.step for m in callback.record.measurements if m.probe == "distortion"} == set(range(1, n_steps + 1))
    assert any("mlp" in group.name for group in callback.watch.groups)
    assert (tmp_path / "watched" / "topology" / "report.html").is_file() == (accumulate == 1)
    # Rows go through the trainer's own log, and leave its own entries as they were.
    ours = [entry for entry in trainer.state.log_history if any(key.startswith("topology/") for key in entry)]
    assert {entry["step"] for entry in ours} >= set(range(4, n_steps + 1, 4))
    assert all("topology/phase" in entry for entry in ours)
    lost = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (plain, trainer)]
    assert lost[0] == lost[1]
    assert len(lost[0]) == n_steps // 4


# --- what a step is, and what breaks ----------------------------------------------------------------------------------


def test_accumulated_batches_are_one_step(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=4)
    callback = watched(trainer, probes=[Distortion(every_n_steps=1)])
    trainer.train()
    assert by_step(callback, "distortion") == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(0.5 < loss < 2.0 for loss in losses(callback))  # about log 3, not a fourth of it


# --- gate and guard ---------------------------------------------------------------------------------------------------


def test_the_gate_stops_the_trainer_at_the_very_step(tmp_path):
    trainer = trainer_of(tmp_path, epochs=3)
    callback = watched(trainer, probes=[Distortion(every_n_steps=1)], stop_on="topology_breakdown")
    trainer.add_callback(Kick(11))
    trainer.train()
    assert trainer.state.global_step == 11
    assert "topology_breakdown at step 11 in net." in callback.gate.reason
    [line] = [m for m in callback.record.measurements if m.probe == "gate"]
    assert (line.step, line.values["stopped"]) == (11, 1.0)


def test_no_step_is_above_max_ratio(tmp_path):
    free, held = trainer_of(tmp_path / "free", lr=30.0), trainer_of(tmp_path / "held", lr=30.0)
    seen = [Weights(), Weights()]
    callback = watched(held, probes=[Distortion(every_n_steps=1)], max_ratio=LIMIT)
    for trainer, look in zip((free, held), seen, strict=True):
        trainer.add_callback(look)
        trainer.train()
    ratios = [[ratio(*pair) for pair in pairwise(look.seen)] for look in seen]
    assert max(ratios[0]) > 1.0
    assert 0.99 * LIMIT < max(ratios[1]) <= LIMIT
    assert callback.guard.n_updates == 16
    assert 0 < callback.guard.n_dropped + 1 <= callback.guard.n_held


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing has interrupted."""
    trainer = trainer_of(tmp_path_factory.mktemp("whole"), save_strategy="epoch")
    callback = watched(trainer, max_ratio=LIMIT)
    trainer.train()
    return weights(trainer.model), lines(callback)


@pytest.mark.parametrize(
    ("saves", "elsewhere"),
    [({"save_strategy": "epoch"}, False), ({"save_strategy": "steps", "save_steps": 8}, True)],
    ids=["by epoch, in place", "by steps, moved"],
)
def test_a_resumed_training_leaves_the_record_of_a_whole_one(tmp_path, whole, saves, elsewhere):
    wanted_weights, wanted_lines = whole
    trainer = trainer_of(tmp_path / "parts", epochs=1, **saves)
    watched(trainer, max_ratio=LIMIT)
    trainer.train()
    checkpoint = tmp_path / "parts" / "checkpoint-8"
    state = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["topology"]
    assert (state["step"], state["watch"]["step"]) == (8, 8)
    if elsewhere:
        checkpoint = checkpoint.rename(tmp_path / "moved")
    trainer = trainer_of(tmp_path / "parts", **saves)
    callback = watched(trainer, max_ratio=LIMIT)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert callback.watch.dirpath == Path(trainer.args.output_dir) / "topology"
    assert callback.guard.n_updates == 16
    assert all(torch.equal(weights(trainer.model)[name], p) for name, p in wanted_weights.items())
    assert lines(callback) == wanted_lines
    assert [str(event.name) for event in happened(callback.events)] == ["gap"]


def test_the_best_checkpoint_has_the_state_too(tmp_path):
    trainer = trainer_of(
        tmp_path, save_strategy="best", eval_strategy="epoch", metric_for_best_model="loss", label_names=["labels"]
    )
    trainer.prediction_step = lambda model, inputs, *_, **__: (model(**inputs)["loss"].detach(), None, None)
    watched(trainer, probes=[Persistence(every_n_epochs=1, max_dim=0)])
    trainer.train()
    [checkpoint, *_] = sorted(tmp_path.glob("checkpoint-*"))
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["topology"]["step"] == state["global_step"]
