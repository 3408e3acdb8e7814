"""What the neurons of a model are: found by one traced run, proved by permuting them."""

from lightning_topo.neurons.coverage import ParameterCoverage
from lightning_topo.neurons.declaration import declare_neurons
from lightning_topo.neurons.discovery import find_neuron_groups
from lightning_topo.neurons.from_tapes import FoundNeurons, groups_from_tapes
from lightning_topo.neurons.group import NeuronGroup, ParamSlice
from lightning_topo.neurons.registry import register_rule
from lightning_topo.neurons.state import gather_state, named_moments
from lightning_topo.neurons.table import neuron_table
from lightning_topo.neurons.verify import verify_groups, verify_on_tapes

__all__ = [
    "FoundNeurons",
    "NeuronGroup",
    "ParamSlice",
    "ParameterCoverage",
    "declare_neurons",
    "find_neuron_groups",
    "gather_state",
    "groups_from_tapes",
    "named_moments",
    "neuron_table",
    "register_rule",
    "verify_groups",
    "verify_on_tapes",
]
