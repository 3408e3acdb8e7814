# %% [markdown]
# # A run in a notebook
#
# This is a script in cells (`# %%`): VS Code, Jupytext and Spyder open it as a notebook, and
# `python examples/notebook.py --out figures` runs it from top to bottom. It needs the extra `notebook`
# (pandas): `pip install "lightning-topo[notebook]"`.

# %%
import argparse
import tempfile
from pathlib import Path

from lightning_topo import read_record
from lightning_topo.demo import run

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, help="a folder for the figures as PNG files")
parser.add_argument("--steps", type=int, default=400)
options, _ = parser.parse_known_args()  # a notebook's own arguments are not ours

# %% [markdown]
# Train something with a `TopologyMonitor`. `monitor.record` is the record as it stands, also while training goes on
# in another cell's thread; `read_record(folder)` reads that of any run, of this process or another.

# %%
monitor, _ = run(steps=options.steps, save_dir=Path(tempfile.mkdtemp()))
record = monitor.record
assert record == read_record(monitor.dirpath)

# %% [markdown]
# ## Frames
#
# A row for each measurement, a column for each quantity. From there everything is pandas: the critical ratio of every
# group, a column each, and when it was largest.

# %%
measured = record.measurements_frame()
ratios = measured.pivot_table(index="step", columns="group", values="critical_ratio")
print(ratios.agg(["max", "idxmax"]))

# %%
events = record.events_frame()
print(events[["step", "name", "group", "severity", "value"]])

# %% [markdown]
# A row for each bar of each diagram; a bar that never ends has an infinite death.

# %%
bars = record.diagrams_frame()
loops = bars[bars.dimension == 1].assign(persistence=lambda b: b.death / b.birth)
print(loops.groupby(["group", "step"]).persistence.max().unstack("group").tail())

# %% [markdown]
# ## Figures
#
# Each is a `matplotlib.figure.Figure`, which a notebook shows below its cell and `savefig` writes to a file; axes are
# there to be changed (`figure.axes[0].set_ylim(...)`).

# %%
figures = {
    "phases": record.plot_phases(),
    "learning_rate": record.plot_learning_rate(),
    "critical_ratio": record.plot_critical_ratio(),
    "stability": record.plot_stability(),
    "distortion": record.plot_distortion("net.0"),
    "diagram": record.plot_diagram(step=record.diagram_steps[0]),
    "change": record.plot_change(),
    "betti_curves": record.plot_betti_curves(),
    "crocker": record.plot_crocker(),
}

# %%
if options.out is not None:
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png")
        print(options.out / f"{name}.png")
