"""What publishing costs: fifty groups of neurons, measured at every step, a row to the logger every 50 steps.

    python benchmarks/publishing.py [--groups 50] [--steps 2000] [--every 50] [--step-ms 100] [--repeats 3]

Times what the monitor does beside measuring, in the thread that trains: values into `trainer.callback_metrics` after
every step, and into the logger's row. Each step measures every group's step map, each row also every group's
persistence; the worst group is another one at almost every row, which is the hardest for a logger. Figures are not in
here: they have a budget of their own, a quarter of `max_overhead`.

The percentage is of the wall time, the fastest of the repeats. The time that the thread computed stands beside it: on
a machine that others use too it is the steadier number, but leaves out what a disk or a server takes.
"""

import argparse
import contextlib
import io
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_topo import TrackioLogger
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import LogGroups, Readings
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.outputs._outputs import Outputs
from lightning_topo.outputs.trackers import TrackerOutput

STEP = ("critical_ratio", "contraction", "expansion", "log_distortion", "total_contraction", "total_expansion")
STEP += ("total_log_distortion", "distinct_neurons")
CAPTURE = tuple(f"{name}_{k}" for name in ("betti", "total_persistence", "entropy", "max_persistence") for k in (0, 1))
SECOND_CAPTURE = ("log_bottleneck_0", "log_bottleneck_1", "log_bottleneck_bound")


def logger_makers(folder: Path) -> dict[str, Callable[[], list[Logger]]]:
    """Each kind of logger, writing into the folder."""
    return {
        "none": list,
        "CSV": lambda: [CSVLogger(folder)],
        "TensorBoard": lambda: [TensorBoardLogger(folder)],
        "MLflow (sqlite)": lambda: [MLFlowLogger("b", tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")],
        "W&B (offline)": lambda: [WandbLogger(offline=True, save_dir=folder)],
        "Trackio": lambda: [TrackioLogger("b")],
    }


def milliseconds(
    loggers: list[Logger], log_groups: LogGroups, n_groups: int, steps: int, every: int
) -> tuple[float, float]:
    """The time that publishing takes by step, on the wall and of the thread's computing."""
    random.seed(0)
    groups = [f"transformer.layers.{i // 3}.{('attn', 'mlp.up', 'mlp.down')[i % 3]}" for i in range(n_groups)]
    readings, callback_metrics = Readings(groups, log_groups), {}
    outputs = Outputs([TrackerOutput(logger, None, share=0.005) for logger in loggers])
    outputs.start(Run((), readings, {}))

    def measured(step: int, probe: str, group: str, names: tuple[str, ...]) -> Measurement:
        return Measurement(step, 0, probe, group, {name: random.random() for name in names})

    wall = cpu = 0.0
    for step in range(1, steps + 1):
        found = [measured(step, "distortion", group, STEP) for group in groups]
        if step % every == 0:
            names = CAPTURE if step == every else (*CAPTURE, *SECOND_CAPTURE)
            found += [measured(step, "persistence", group, names) for group in groups]
        began = time.perf_counter(), time.thread_time()
        for m in found:
            readings.take(m)
            outputs.measurement(m)
        outputs.take()
        readings.take(Measurement(step, 0, "phase", GLOBAL, {"phase": 0.0, "overhead": 0.01}))
        callback_metrics.update(readings.metrics())
        if step % every == 0:
            outputs.measurement(readings.row(step, 0))
            for logger in loggers:
                logger.save()  # as Lightning does after each row
        wall += time.perf_counter() - began[0]
        cpu += time.thread_time() - began[1]
    for logger in loggers:
        logger.finalize("success")
    return 1e3 * wall / steps, 1e3 * cpu / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="Trainer(log_every_n_steps=...)")
    parser.add_argument("--step-ms", type=float, default=100.0, help="how long a training step takes")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ |= {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    print(f"{arguments.groups} groups, a row every {arguments.every} steps, of {arguments.step_ms:g} ms each\n")
    print('| logger | log_groups="worst" | log_groups="all" |\n|---|---|---|')
    with tempfile.TemporaryDirectory() as root:
        os.environ["TRACKIO_DIR"] = str(Path(root) / "trackio")  # asked for once, when trackio is imported
        for name in logger_makers(Path()):
            cells = []
            for log_groups in ("worst", "all"):
                times = []
                for repeat in range(arguments.repeats):
                    folder = Path(root) / f"{name}-{log_groups}-{repeat}"
                    folder.mkdir()
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        made = logger_makers(folder)[name]()
                        times.append(milliseconds(made, log_groups, arguments.groups, arguments.steps, arguments.every))
                        if name.startswith("W&B"):
                            made[0].experiment.finish()
                wall, cpu = (min(each) for each in zip(*times, strict=True))
                cells.append(f"{100 * wall / arguments.step_ms:.2f} % ({wall:.2f} ms, {cpu:.2f} ms computing)")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
