"""What a finished run came to, as the few fields by which a table of runs is sorted and a sweep is judged."""

from pathlib import Path

from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.page._output import MOST_BYTES_HERE, record_bytes
from lightning_topo.outputs.page._verdict import sentence
from lightning_topo.outputs.record import RunRecord, read_record


def conclusion(record: RunRecord) -> dict[str, str | float]:
    """Verdict, recommendation, first steps of edge and breakdown, largest r, coverage; what did not happen is left out.

    >>> from lightning_topo.measurement import Measurement
    >>> ratio = Measurement(3, 0, "distortion", "net.0", {"critical_ratio": 2.0})
    >>> found = conclusion(RunRecord(Path("run"), "id", (ratio,)))
    >>> found["topology/first_breakdown"], found["topology/largest_critical_ratio"]
    (3.0, 2.0)
    """
    outcome = history(record).outcome
    advice = advise(outcome, Evidence.of_record(record))
    coverage = outcome.coverage
    found: dict[str, str | float | None] = {
        "topology/verdict": sentence(outcome),
        "topology/recommendation": None if advice is None else advice.decision,
        "topology/recommended_learning_rate": None if advice is None else advice.learning_rate,
        "topology/first_edge": outcome.edge_step,
        "topology/first_breakdown": outcome.breakdowns[0].step if outcome.breakdowns else None,
        "topology/first_divergence": outcome.diverged_step,
        "topology/largest_critical_ratio": None if outcome.peak_ratio is None else outcome.peak_ratio.value,
        "topology/certified_share": coverage.certified / coverage.total if coverage is not None else None,
    }
    return {key: v if isinstance(v, str) else float(v) for key, v in found.items() if v is not None}


def concluded(dirpath: Path | None) -> dict[str, str | float]:
    """The conclusion of the record in a folder; empty where there is none, or where it is too large to be read here."""
    if dirpath is None or record_bytes(dirpath) > MOST_BYTES_HERE:
        return {}
    return conclusion(read_record(dirpath))
