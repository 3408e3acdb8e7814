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
        f"Time over that of `h0_deaths`, on {device.type}. Each is given the cloud of n points in d dimensions. "
        "Below 1 is faster than ours. `one product` is the least that any method with all distances must pay.\n\n"
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
        "Time over that of `persistence(max_dim=1)` with its default engine, the first column; one thread. Ours does "
        "the distances in a way that keeps duplicates exact, H0 by itself, the guards and the sorting, and calls an "
        "engine for H1: how much that adds shows between `lightning-topo, giotto-ph` and `giotto-ph`. The simplex tree "
        "holds every triangle and is left out above n = 128.\n\n"
        f"{against}\n\nHow each grows: time over its own time at the first size.\n\n{growth}\n"
    )


def matching(device: torch.device, quick: bool) -> str:
    """Distances between diagrams."""
    counts = [20] if quick else [50, 100, 200]
    return (
        "## Matching two diagrams\n\n"
        "Time over ours, for random diagrams of so many bars. Ours are exact; hera's Wasserstein is to 1 %. GUDHI's "
        "own `bottleneck_distance` is under the GPL, and is not used by lightning-topo. persim's Wasserstein is left "
        "out above 400 bars.\n\n"
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
        f"Time of {steps} training steps with each, over the same training without (columns: hidden layers x width; "
        f"batch {peers_monitors.BATCH}; all look every {peers_monitors.PERIOD} steps, unless said otherwise). Each "
        "measures something else: the numbers say what it costs, not what it is worth. These networks are small, a "
        "step takes a few milliseconds: against a larger step every one of these costs less. The clock runs from the "
        "first step to the last; what W&B does in its own process is not in it.\n\n"
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
        "Written by `python -m benchmarks.peers --write`: all calls of a table take turns in one run, the best of each "
        "counts, and only ratios are shown; on a CPU of processor time, so that a busy machine distorts them less. "
        "Run it on your machine before you rely on them.\n\n"
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
