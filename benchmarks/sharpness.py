"""How right the monitor's sharpness is: five points of the demo, against the dense float64 Hessian.

    python benchmarks/sharpness.py [--lr 0.3]

Takes about a minute a point on two cores: the Hessian of 8,970 parameters is built row by row.
"""

import argparse
import logging
import tempfile
import warnings

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_topo import Sharpness, TopologyMonitor, read_record
from lightning_topo.demo import DigitsMLP, FullBatch, digits
from lightning_topo.stability import hessian

STEPS = (1, 100, 250, 300, 400)


class Keep(L.Callback):
    """Keeps the weights behind some steps."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx + 1 in STEPS:
            self.weights[batch_idx + 1] = {k: v.double().clone() for k, v in pl_module.state_dict().items()}


def top_eigenvalue(module: DigitsMLP) -> float:
    """lambda_max by `eigvalsh` of the whole matrix."""
    x, onehot = (t.double() for t in digits().tensors)
    curvature = hessian(lambda: 0.5 * ((module(x) - onehot) ** 2).sum(1).mean(), module.parameters())
    n = sum(p.numel() for p in module.parameters())
    products = torch.func.vmap(lambda v: curvature @ v, chunk_size=128)
    return float(torch.linalg.eigvalsh(products(torch.eye(n, dtype=torch.float64)))[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    torch.manual_seed(0)
    keep = Keep()
    with tempfile.TemporaryDirectory() as folder:
        monitor = TopologyMonitor([Sharpness(every_n_steps=1)], report=False)
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[keep, monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(DigitsMLP(arguments.lr), DataLoader(FullBatch(digits(), STEPS[-1]), batch_size=None))
        assert monitor.dirpath is not None
        found = {m.step: m.values for m in read_record(monitor.dirpath).measurements if m.probe == "sharpness"}
    print("| step | measured | dense float64 | error | residual | products |\n|---|---|---|---|---|---|")
    module = DigitsMLP().double()
    for step in STEPS:
        module.load_state_dict(keep.weights[step])
        truth, values = top_eigenvalue(module), found[step]
        print(
            f"| {step} | {values['sharpness']:.4f} | {truth:.4f} | {values['sharpness'] / truth - 1:+.2%} "
            f"| {values['residual'] / truth:.2%} | {values['n_hvp']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
