"""The geometry of a cloud of neurons: distances, the distortion of a step, landmarks."""

from lightning_topo.geometry.approximate import projected_step_distortion, sampled_step_distortion
from lightning_topo.geometry.bounds import (
    BoundTable,
    StepBound,
    displacement_lengths,
    pair_bounds,
    step_bound,
    step_bounds,
    upper_norms,
)
from lightning_topo.geometry.coincidence import distinct_neurons
from lightning_topo.geometry.distances import check_cloud, diameter, pairwise_distances
from lightning_topo.geometry.distortion import StepDistortion, step_distortion
from lightning_topo.geometry.landmarks import Landmarks, farthest_point_landmarks
from lightning_topo.geometry.quantiles import DistortionQuantiles, distortion_quantiles
from lightning_topo.geometry.resolution import resolved_critical_ratio
from lightning_topo.geometry.snapshots import Snapshot, snapshot, snapshot_of_nearest

__all__ = [
    "BoundTable",
    "DistortionQuantiles",
    "Landmarks",
    "Snapshot",
    "StepBound",
    "StepDistortion",
    "check_cloud",
    "diameter",
    "displacement_lengths",
    "distinct_neurons",
    "distortion_quantiles",
    "farthest_point_landmarks",
    "pair_bounds",
    "pairwise_distances",
    "projected_step_distortion",
    "resolved_critical_ratio",
    "sampled_step_distortion",
    "snapshot",
    "snapshot_of_nearest",
    "step_bound",
    "step_bounds",
    "step_distortion",
    "upper_norms",
]
