"""What a tape holds when it is closed, and what it cannot be closed with."""

import torch
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape
from lightning_topo._tape.closing import empty_tape

DATA = torch.arange(6.0).reshape(2, 3)


def closed(loss: Tensor, recorder: StepRecorder, **options: int | float) -> Tape:
    recorder.loss(loss, **options)
    [tape] = recorder.end()
    return tape


def test_only_what_the_loss_descends_from_is_held() -> None:
    model, recorder = nn.Linear(3, 4), StepRecorder()
    recorder.begin(model)
    out = model(DATA)
    torch.linalg.svdvals(model.weight.detach())
    unread = torch.randn(5, 5) @ torch.ones(5)
    tape = closed(out.square().mean() * 4, recorder, scale=4.0)
    assert [call.name for call in tape.calls if "svd" in call.name or "mv" in call.name] == []
    assert tape.draws == {}
    assert [value.shape for value in tape.constants.values()] == [DATA.shape]
    assert (tape.scale, tape.n_samples, len(unread)) == (4.0, 2, 5)


def test_its_constants_stay_as_they_were() -> None:
    model, recorder, data = nn.Linear(3, 4), StepRecorder(), DATA.clone()
    recorder.begin(model)
    tape = closed(model(data).mean(), recorder)
    data.zero_()
    assert [torch.equal(value, DATA) for value in tape.constants.values()] == [True]


def test_what_was_freed_before_the_loss_leaves_an_empty_tape() -> None:
    model, recorder, data = nn.Linear(3, 4), StepRecorder(), DATA.clone()
    recorder.begin(model)
    loss = model(data).mean()
    data.untyped_storage().resize_(0)
    tape = closed(loss, recorder, scale=2.0)
    assert tape == empty_tape("something that it reads was freed while it ran", 2.0)


def test_what_reads_a_shard_itself_leaves_an_empty_tape() -> None:
    model, recorder, shard = nn.Linear(3, 4), StepRecorder(), torch.ones(3)
    recorder.begin(model, shards=[shard])
    tape = closed(model(DATA * shard[1:].sum()).mean(), recorder)
    assert tape.obstacle == "it reads shards of parameters themselves"
