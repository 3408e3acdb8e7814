"""The geometry of a cloud of neurons: distances, the distortion of a step, landmarks."""

from lightning_topo.geometry.approximate import projected_step_distortion, sampled_step_distortion
from lightning_topo.geometry.coincidence import distinct_neurons
from lightning_topo.geometry.distances import check_cloud, diameter, pairwise_distances
from lightning_topo.geometry.distortion import StepDistortion, step_distortion
from lightning_topo.geometry.fate import NeuronFate, neuron_fate
from lightning_topo.geometry.landmarks import Landmarks, farthest_point_landmarks
from lightning_topo.geometry.quantiles import DistortionQuantiles, distortion_quantiles
from lightning_topo.geometry.resolution import resolved_critical_ratio

__all__ = [
    "DistortionQuantiles",
    "Landmarks",
    "NeuronFate",
    "StepDistortion",
    "check_cloud",
    "diameter",
    "distinct_neurons",
    "distortion_quantiles",
    "farthest_point_landmarks",
    "neuron_fate",
    "pairwise_distances",
    "projected_step_distortion",
    "resolved_critical_ratio",
    "sampled_step_distortion",
    "step_distortion",
]
