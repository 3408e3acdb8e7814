"""The monitor where processes die, and where there are two of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lightning_topo import read_record

PRELUDE = """
    import os
    import lightning as L
    import torch
    from torch import nn
    from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader(n, batch_size, ranks=1):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, 4, generator=generator)
        data = torch.utils.data.TensorDataset(x, torch.randint(0, 3, (n,), generator=generator))
        if ranks == 1:
            return torch.utils.data.DataLoader(data, batch_size=batch_size)
        rank = int(os.environ.get("LOCAL_RANK", 0))
        sampler = torch.utils.data.DistributedSampler(data, ranks, rank, shuffle=False)
        return torch.utils.data.DataLoader(data, batch_size=batch_size, sampler=sampler)

    QUIET = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False)
"""


def script(path, body):
    path.write_text(textwrap.dedent(PRELUDE) + textwrap.dedent(body))
    return [sys.executable, str(path)]


def test_a_killed_training_leaves_every_line(tmp_path):
    command = script(
        tmp_path / "endless.py",
        f"""
        torch.manual_seed(0)
        trainer = L.Trainer(max_epochs=-1, callbacks=[TopologyMonitor(max_overhead=None)],
                            default_root_dir={str(tmp_path)!r}, **QUIET)
        trainer.fit(Module(), loader(64, 8))
        """,
    )
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = tmp_path / "topology" / "measurements.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (lines.is_file() and lines.read_bytes().count(b"\n") > 300):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = lines.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    assert all(json.loads(line) for line in whole)
    record = read_record(tmp_path / "topology")
    assert len(record.measurements) == len(whole) - 1
    steps = [m.step for m in record.measurements if m.probe == "distortion" and m.group == "net.0"]
    assert steps == list(range(1, len(steps) + 1))
    assert record.diagrams(record.diagram_steps[-1]).keys() == {"net.0", "net.2"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="gloo on one machine")
def test_two_processes_measure_what_one_does(tmp_path):
    """Each of two ranks sees half of every batch: together they take the steps of one process."""
    body = """
        torch.manual_seed(0)
        monitor = TopologyMonitor([Distortion(every_n_steps=1), Persistence(every_n_epochs=1)], on_error="raise")
        trainer = L.Trainer(max_epochs=2, callbacks=[monitor], default_root_dir={root!r}, devices={devices},
                            strategy={strategy!r}, use_distributed_sampler=False, **QUIET)
        trainer.fit(Module(), loader(64, {batch_size}, {devices}))
        assert "topology/critical_ratio" in trainer.callback_metrics, "every rank can be gated"
        if torch.distributed.is_initialized():  # gloo aborts a process that leaves while its peer still talks
            trainer.strategy.barrier()
            torch.distributed.destroy_process_group()
    """
    for devices, strategy, batch_size in ((1, "auto", 16), (2, "ddp", 8)):
        options = {"root": str(tmp_path / strategy), "devices": devices, "strategy": strategy, "batch_size": batch_size}
        command = script(tmp_path / f"{strategy}.py", body.format(**options))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (read_record(tmp_path / strategy / "topology") for strategy in ("auto", "ddp"))
    assert [(m.step, m.probe, m.group) for m in one.measurements if m.probe != "training"] == [
        (m.step, m.probe, m.group) for m in two.measurements if m.probe != "training"
    ]
    pairs = [
        (a.values["critical_ratio"], b.values["critical_ratio"])
        for a, b in zip(
            *([m for m in record.measurements if m.probe == "distortion"] for record in (one, two)), strict=True
        )
    ]
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in pairs)
    assert not (tmp_path / "ddp" / "topology-v1").exists()
