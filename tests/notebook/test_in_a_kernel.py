"""Trainings in a Jupyter kernel, as a notebook's reader sees them: under both progress bars, and the monitor shown."""

import nbclient
import nbformat
import pytest

FIT = """
import logging
import tempfile
import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader
from lightning_topo import TopologyMonitor
from lightning_topo.demo import DigitsMLP, FullBatch, digits

monitor = TopologyMonitor()
trainer = L.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
    default_root_dir=tempfile.mkdtemp(), callbacks=[{bar}(), monitor],
)
trainer.fit(DigitsMLP(0.3), DataLoader(FullBatch(digits(), 30), batch_size=None))
"""


@pytest.fixture(scope="module")
def cells():
    """The outputs of a notebook that trains under each bar and then shows the monitor, one after the other."""
    sources = [FIT.replace("{bar}", "TQDMProgressBar"), FIT.replace("{bar}", "RichProgressBar"), "monitor"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in notebook.cells]


def said(outputs):
    """All text of a cell."""
    shown = [str(output.get("text") or output.get("data", {}).get("text/plain") or "") for output in outputs]
    return "\n".join(shown)


@pytest.mark.parametrize("cell", [0, 1], ids=["tqdm", "rich"])
def test_a_training_ends_and_its_summary_is_said_once(cells, cell):
    outputs = cells[cell]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert said(outputs).count("60 of 60 steps certified") == 1, said(outputs)


def test_the_monitor_shows_itself(cells):
    [output] = cells[2]
    assert output.output_type == "execute_result"
    assert "60 of 60 steps certified" in output.data["text/html"]
    assert "<img" in output.data["text/html"]
