"""The fault suite as a table: python -m tests.faults [--kills 20] [--records 200] [--only WORD] [--into FILE].

With `--into` each case is written to a file as it is done, and those that are there already are not run again: a suite
that was broken off goes on. `--page FILE` writes the table, with what each case is, as a page of the documentation.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.cases import CASES
from tests.faults.nursery import Nursery

HEAD = "| fault | injected | survived | lines lost without a report |\n|---|---|---|---|"
INTRODUCTION = """# Faults

Each case breaks a real training in one way and compares its record with what the monitor published before: every line
that is missing must be counted in an event and in the log, no line may stand twice, and the page must open. This
command runs all cases and writes this page:

```
python -m tests.faults --kills {kills} --records {records} --into faults.jsonl --page docs/faults.md
```

The tests run a few faults of every case (`tests/faults/test_faults.py`).
"""


def main() -> int:
    """Inject every fault; the exit status is the number of those not survived, and of lines lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often to kill -9 (default: %(default)s)")
    parser.add_argument("--records", type=int, default=200, help="hostile records (default: %(default)s)")
    parser.add_argument("--only", default="", help="of the cases those whose name holds this word")
    parser.add_argument("--into", type=Path, help="the file of what is done, to go on from")
    parser.add_argument("--page", type=Path, help="the page of the documentation to write")
    arguments = parser.parse_args()
    done = _done(arguments.into)
    nursery = Nursery()
    print(HEAD, flush=True)
    for name in (name for name in CASES if arguments.only in name):
        if name not in done:
            done[name] = _injected(nursery, name, arguments)
            if arguments.into is not None:
                with arguments.into.open("a") as file:
                    file.write(json.dumps({"fault": name} | done[name]) + "\n")
        print(_row(name, done[name]), flush=True)
    print(_sum(done), flush=True)
    if arguments.page is not None:
        rows = [_row(name, done[name]) for name in CASES if name in done]
        cases = [f"- **{name}**: {(CASES[name].__doc__ or '').strip()}" for name in CASES if name in done]
        introduction = INTRODUCTION.format(kills=arguments.kills, records=arguments.records)
        text = "\n".join([introduction, HEAD, *rows, _sum(done), "", "## What each case does", "", *cases])
        arguments.page.write_text(text + "\n")
    return sum(found["injected"] - found["survived"] + found["lost"] for found in done.values())


def _done(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line.pop("fault"): line for line in lines}


def _injected(nursery: Nursery, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    options = {"kill -9 at random moments": [arguments.kills], "hostile records": [arguments.records]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = CASES[name](nursery, Path(folder), *options.get(name, []))
        except AssertionError as error:
            return {"injected": 1, "survived": 0, "lost": 0, "seconds": 0, "because": str(error)[-2000:]}
    seconds = round(time.monotonic() - began)
    return {"injected": found.n_faults, "survived": found.n_survived, "lost": found.n_lost, "seconds": seconds}


def _row(name: str, found: dict[str, Any]) -> str:
    survived = f"NO: {found['because']}" if "because" in found else found["survived"]
    return f"| {name} | {found['injected']} | {survived} | {found['lost']} |"


def _sum(done: dict[str, dict[str, Any]]) -> str:
    total = {key: sum(found[key] for found in done.values()) for key in ("injected", "survived", "lost")}
    return f"| **all** | {total['injected']} | {total['survived']} | {total['lost']} |"


if __name__ == "__main__":
    raise SystemExit(main())
