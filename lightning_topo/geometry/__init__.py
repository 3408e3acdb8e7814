"""The geometry of a cloud of neurons: distances, the distortion of a step, landmarks."""

from lightning_topo.geometry._bounds import (
    BoundTable,
    StepBound,
    displacement_lengths,
    pair_bounds,
    step_bound,
    step_bounds,
    upper_norms,
)
from lightning_topo.geometry._coincidence import distinct_neurons, equal_rows
from lightning_topo.geometry._distances import check_cloud, diameter, pairwise_distances
from lightning_topo.geometry._distortion import (
    Distortions,
    StepDistortion,
    block_distortions,
    distortions,
    step_distortion,
)
from lightning_topo.geometry._fate import NeuronFate, neuron_fate
from lightning_topo.geometry._landmarks import Landmarks, farthest_point_landmarks
from lightning_topo.geometry._resolution import resolved_critical_ratio
from lightning_topo.geometry._snapshots import MAX_ROWS, Snapshot, snapshot, snapshot_of_nearest

__all__ = [
    "MAX_ROWS",
    "BoundTable",
    "Distortions",
    "Landmarks",
    "NeuronFate",
    "Snapshot",
    "StepBound",
    "StepDistortion",
    "block_distortions",
    "check_cloud",
    "diameter",
    "displacement_lengths",
    "distinct_neurons",
    "distortions",
    "equal_rows",
    "farthest_point_landmarks",
    "neuron_fate",
    "pair_bounds",
    "pairwise_distances",
    "resolved_critical_ratio",
    "snapshot",
    "snapshot_of_nearest",
    "step_bound",
    "step_bounds",
    "step_distortion",
    "upper_norms",
]
