"""Other libraries at the same work, side by side in one run.

    python -m benchmarks.peers [--device cuda] [--quick] [--only h0,h1,matching,monitors] [--write]

Prints tables of ratios; `--write` puts them into docs/peers.md. A library that is not installed is left out. Those that
pin or pull a torch of their own can be put on the path from a folder of their own:

    pip install --no-deps --target peers weightwatcher powerlaw matplotlib-inline torch-module-monitor \\
        cockpit-for-pytorch backpack-for-pytorch einops unfoldNd json-tricks seaborn 'setuptools<81'
    PYTHONPATH=peers python -m benchmarks.peers

Sharpness has a comparison of its own: benchmarks/sharpness.py.
"""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import peers_homology, peers_monitors

PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
LIBRARIES = (
    "torch", "giotto-ph", "gudhi", "ripser", "redzed-tda", "persim", "scipy", "wandb", "weightwatcher",
    "torch-module-monitor", "cockpit-for-pytorch", "backpack-for-pytorch",
)  # fmt: skip
SECTIONS = ("h0", "h1", "matching", "monitors")


def h0(device: torch.device, quick: bool) -> str:
    """H0 against what could be called instead, and how each grows."""
    sizes = [(256, 64), (512, 64)] if quick else [(512, 64), (1024, 64), (2048, 64), (1024, 1024)]
    against, growth = peers_homology.sized(peers_homology.h0_calls, sizes, device, 1 if quick else 3)
    return (
        "## H0: the minimum spanning tree of a cloud\n\n"
        f"Time over that of `h0_deaths`, on {device.type}. The input is a cloud of n points in d dimensions. `one "
        "product` is the lower limit for any method that computes all distances.\n\n"
        f"{against}\n\n"
        "How each grows: time over its own time at the first size.\n\n"
        f"{growth}\n"
    )


def h1(device: torch.device, quick: bool) -> str:
    """H1 by our engines and by the libraries alone."""
    sizes = [(64, 16)] if quick else [(64, 64), (128, 64), (256, 64), (128, 1024)]
    against, growth = peers_homology.sized(peers_homology.h1_calls, sizes, device, 1 if quick else 3)
    return (
        "## H1: Vietoris-Rips persistence\n\n"
        "Time over that of `persistence(max_dim=1)` with its default engine, the first column; one thread. "
        "lightning-topo calls an engine for H1. It adds distances that keep duplicates exact, H0, checks and "
        "sorting. Compare `lightning-topo, giotto-ph` with `giotto-ph` to see how much time that adds. The "
        "simplex tree holds every triangle and is left out above n = 128.\n\n"
        f"{against}\n\nHow each grows: time over its own time at the first size.\n\n{growth}\n"
    )


def matching(device: torch.device, quick: bool) -> str:
    """Distances between diagrams."""
    counts = [20] if quick else [50, 100, 200]
    return (
        "## Matching two diagrams\n\n"
        "Time over that of lightning-topo, for random diagrams with the given number of bars. lightning-topo's "
        "distances are exact; hera's Wasserstein distance is within 1 %. GUDHI's own `bottleneck_distance` is "
        "under the GPL, and lightning-topo does not use it. persim's Wasserstein distance is left out above 400 "
        "bars.\n\n"
        f"{peers_homology.matching(counts, 1 if quick else 3)}\n"
    )


def monitors(device: torch.device, quick: bool) -> str:
    """What watching costs."""
    sizes = [(32, 2)] if quick else [(64, 2), (256, 2), (64, 6)]
    steps, repeats = (50, 1) if quick else (100, 2)
    table, failed = peers_monitors.overhead(sizes, steps, device, repeats)
    missing = "".join(f"- {line}\n" for line in failed)
    return (
        "## Watching a training\n\n"
        f"Time of {steps} training steps with each watcher, over the same training without one. Columns are "
        f"hidden layers x width; the batch is {peers_monitors.BATCH}. All measure every {peers_monitors.PERIOD} "
        "steps unless the row names another period. Each measures something else: the numbers show what it "
        "costs, not what it is worth. In these small networks a step takes a few milliseconds; relative to a "
        "larger step each watcher costs less. The clock runs from the first step to the last, without the work "
        "of W&B's own process.\n\n"
        f"{table}\n" + (f"\nDid not run here:\n\n{missing}" if missing else "")
    )


def header(device: torch.device) -> str:
    """What was run, on what."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        "# Peers, side by side\n\n"
        "This page tells you how long other libraries take at the same work, as ratios. In the first three "
        "sections a ratio below 1 is faster than lightning-topo; the last compares a watched training with an "
        "unwatched one. Run it on your machine before you rely on it.\n\n`python -m benchmarks.peers --write` "
        "writes this page. All calls of a table take turns in one run, and the best of each counts. On a CPU the "
        "ratios are of processor time, so that a busy machine distorts them less.\n\n"
        f"Python {platform.python_version()}, {where}, {torch.get_num_threads()} thread(s). {', '.join(found)}.\n"
    )


def main() -> None:
    """Print the tables, and with --write put them into the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="where the clouds and the training are")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/peers.md")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    make = {"h0": h0, "h1": h1, "matching": matching, "monitors": monitors}
    parts = [header(device)]
    print(parts[0], flush=True)
    for section in arguments.only.split(","):
        parts.append(make[section](device, arguments.quick))
        print(parts[-1], flush=True)
    if arguments.write:
        PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
