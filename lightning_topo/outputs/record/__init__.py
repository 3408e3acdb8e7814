"""The run's own record: a folder of plain files that needs no tracker."""

from lightning_topo.outputs.record.branch import Branch, claim
from lightning_topo.outputs.record.follow import RecordFollower
from lightning_topo.outputs.record.layout import EVENTS, MEASUREMENTS, REPORT, Parent
from lightning_topo.outputs.record.output import RecordOutput
from lightning_topo.outputs.record.read import RunRecord, read_record
from lightning_topo.outputs.record.write import RecordWriter

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
