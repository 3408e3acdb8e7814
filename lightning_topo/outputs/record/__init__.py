"""The run's own record: a folder of plain files that needs no tracker."""

from lightning_topo.outputs.record._branch import Branch, claim
from lightning_topo.outputs.record._follow import RecordFollower
from lightning_topo.outputs.record._layout import EVENTS, MEASUREMENTS, REPORT, Parent
from lightning_topo.outputs.record._output import RecordOutput
from lightning_topo.outputs.record._read import RunRecord, read_record
from lightning_topo.outputs.record._write import RecordWriter

__all__ = [
    "EVENTS",
    "MEASUREMENTS",
    "REPORT",
    "Branch",
    "Parent",
    "RecordFollower",
    "RecordOutput",
    "RecordWriter",
    "RunRecord",
    "claim",
    "read_record",
]
