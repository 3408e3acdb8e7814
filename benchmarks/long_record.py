"""What the page of a very long record takes: `lightning-topo report RUN` in a separate process, its time and memory.

    python -m benchmarks.long_record [--groups 60] [--steps 8000] [--extra 0]

Each step has a line of each group, and one of the loss; `--extra` adds so many values to each line (40 make 500,000
lines 500 MB). Then a tenth more lines are appended, and the page is written again by the process that follows the run.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning_topo.outputs.page import write_report
from lightning_topo.outputs.record import MEASUREMENTS, RecordFollower, RecordWriter


def append(path: Path, n_groups: int, steps: range, extra: int) -> int:
    """Lines of a quiet training, exact at every tenth step and bounded between; how many."""
    draw, n = random.Random(0), 0
    values = {"expansion": 1.1, "log_distortion": 0.2, "total_contraction": 0.8, "total_expansion": 1.7}
    values |= {"distinct_neurons": 64.0, "critical_i": 3.0, "critical_j": 11.0}
    values |= {f"quantity_{k}": 0.123456789 * k for k in range(extra)}
    rest = json.dumps(values)[1:]
    with path.open("a") as file:
        for step in steps:
            place = f'{{"step": {step}, "epoch": {step // 1000}, "probe": '
            file.write(f'{place}"training", "group": "", "reference_step": 0, "loss": {2.0 / (1 + step)}}}\n')
            n += 1 + n_groups
            for i in range(n_groups):
                group = f'"group": "transformer.layers.{i // 3}.part{i % 3}", "reference_step": 0, '
                if step % 10 == 0 and step:
                    file.write(f'{place}"coverage", {group}"from": {step - 10}, "state": "bounded", "bound": 0.4}}\n')
                    n += 1
                ratio = 0.1 + 0.2 * draw.random()
                file.write(
                    f'{place}"distortion", {group}"critical_ratio": {ratio}, "contraction": {1 - ratio}, {rest}\n'
                )
    return n


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--extra", type=int, default=0, help="values more in each line (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordWriter.open(Path(folder) / "topology")
        writer.close()
        path = writer.dirpath / MEASUREMENTS
        n = append(path, arguments.groups, range(arguments.steps), arguments.extra)
        print(f"{n:,} lines, {path.stat().st_size / 1e6:.0f} MB")
        print("| what | seconds | CPU seconds | peak MB |\n|---|---|---|---|")
        began = time.perf_counter()
        command = [sys.executable, "-m", "lightning_topo", "report", str(writer.dirpath)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        took, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = used.ru_maxrss * 1024 / 1e6
        print(
            f"| `lightning-topo report` | {took:.1f} | {used.ru_utime + used.ru_stime:.1f} | {peak:.0f} |", flush=True
        )
        follower = RecordFollower(writer.dirpath)
        follower.read()
        more = range(arguments.steps, arguments.steps + arguments.steps // 10)
        append(path, arguments.groups, more, arguments.extra)
        began, used = time.perf_counter(), time.process_time()
        page = write_report([follower.read(whole=False)], writer.dirpath / "report.html")
        took, cpu = time.perf_counter() - began, time.process_time() - used
        print(f"| a tenth more, followed ({page.stat().st_size / 1e6:.2f} MB) | {took:.1f} | {cpu:.1f} | |")


if __name__ == "__main__":
    main()
