"""A loop of two processes under DDP is watched as one process would be."""

import json

import pytest

from lightning_topo import Distortion, TopologyWatch, read_record
from tests import warm
from tests.distributed.processes import free_port, wait
from tests.loops.loops import Net, batches, options, sgd


def launch(out):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        warm.start("tests.loops.process", out, log=out / f"log-{rank}.txt", env=shared | {"RANK": str(rank)})
        for rank in range(2)
    ]


def test_two_processes_see_what_one_sees(tmp_path):
    codes = wait(launch(tmp_path), 200)
    logs = "".join((tmp_path / f"log-{rank}.txt").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], logs
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    for name, saw in first.items():
        assert saw["dirpath"]
        assert not second[name]["dirpath"]
        for same in ("steps", "events", "metrics", "held", "weights"):
            assert saw[same] == second[name][same], (name, same)
    assert first["0.1-None"]["events"] == [["unwatched_parameters", 1, ""]]  # the bias of the output
    assert first["30.0-0.9"]["held"] > 0
    assert not [event for event in first["30.0-0.9"]["events"] if event[0] == "topology_breakdown"]
    # Both stop where they next tell each other what they have found: where the probe is due.
    broke = [event for event in first["30.0-None"]["events"] if event[0] == "topology_breakdown"]
    assert broke[0][1] <= first["30.0-None"]["steps"] == 3

    model = Net()
    optimizer = sgd(model, 0.1)
    with TopologyWatch(
        model, optimizer, dirpath=tmp_path / "one", **options(probes=[Distortion(every_n_steps=3)])
    ) as watch:
        for batch in batches():
            with watch.step():
                optimizer.zero_grad()
                watch.loss(model(**batch)["loss"]).backward()
                optimizer.step()
        watch.end_epoch()
    together = read_record(tmp_path / "0.1-None" / "topology").measurements
    wanted = {(m.step, m.epoch, m.probe, m.group): m.values for m in watch.record.measurements}
    found = {(m.step, m.epoch, m.probe, m.group): m.values for m in together}
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values, rel=1e-4), key
