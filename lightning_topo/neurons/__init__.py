"""Find the neurons of a model in one traced run, and prove them by permutation."""

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.neurons._declaration import Rows, declare_neurons, rows
from lightning_topo.neurons._discovery import find_neuron_groups
from lightning_topo.neurons._displacements import DisplacementMeter, gather_rows
from lightning_topo.neurons._from_tapes import FoundNeurons, groups_from_tapes
from lightning_topo.neurons._group import NeuronGroup, ParamSlice
from lightning_topo.neurons._registry import register_rule
from lightning_topo.neurons._state import gather_state, named_moments
from lightning_topo.neurons._table import neuron_table
from lightning_topo.neurons._verify import verify_groups, verify_on_tapes

__all__ = [
    "DisplacementMeter",
    "FoundNeurons",
    "NeuronGroup",
    "ParamSlice",
    "ParameterCoverage",
    "Rows",
    "declare_neurons",
    "find_neuron_groups",
    "gather_rows",
    "gather_state",
    "groups_from_tapes",
    "named_moments",
    "neuron_table",
    "register_rule",
    "rows",
    "verify_groups",
    "verify_on_tapes",
]
