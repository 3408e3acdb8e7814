"""A number's way from a probe to the tracker stays short."""

import pytest

from benchmarks.transport import WANTED, holds, on_branches, traced


@pytest.mark.filterwarnings("ignore")
def test_a_number_passes_few_functions_on_its_way_to_the_tracker(tmp_path):
    trace = traced(3, tmp_path)
    way = [function for function in trace.on_the_way if function not in on_branches(trace)]
    names = {function.name for function in way}
    assert {"TopologyMonitor.on_train_batch_end", "Probing.run", "Readings.row", "Outputs.measurement"} <= names
    assert {"RecordWriter.measurement", "observe"} <= {function.name for function in on_branches(trace)}
    assert len(trace.on_the_way) <= WANTED[0]
    assert len({function.file for function in way}) <= WANTED[1]


def test_a_number_is_found_where_it_is_and_nowhere_else():
    assert holds([{"a": (0.25,)}], 0.25, 3)
    assert holds('{"r": 0.25}', 0.25, 0)
    assert not holds([{"a": (0.26,)}], 0.25, 3)
