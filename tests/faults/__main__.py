"""The fault suite as a table: python -m tests.faults [--kills 20] [--only WORD]."""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.cases import CASES
from tests.faults.nursery import Nursery


def main() -> int:
    """Inject every fault; the exit status is the number of those not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often to kill -9 (default: %(default)s)")
    parser.add_argument("--only", default="", help="of the cases those whose name holds this word")
    arguments = parser.parse_args()
    kills, cases = arguments.kills, {name: case for name, case in CASES.items() if arguments.only in name}
    nursery, total, survived, lost = Nursery(), 0, 0, 0
    print("| fault | injected | survived | lines lost | seconds |\n|---|---|---|---|---|", flush=True)
    for name, case in cases.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = case(nursery, Path(folder), *([kills] if name.startswith("kill") else []))
            except AssertionError as error:
                print(f"| {name} | ? | NO: {str(error)[-2000:]} | ? | |", flush=True)
                total += 1
                continue
        total, survived, lost = total + found.n_faults, survived + found.n_survived, lost + found.n_lost
        seconds = time.monotonic() - began
        print(f"| {name} | {found.n_faults} | {found.n_survived} | {found.n_lost} | {seconds:.0f} |", flush=True)
    print(f"| all | {total} | {survived} | {lost} | |")
    return total - survived + lost


if __name__ == "__main__":
    raise SystemExit(main())
