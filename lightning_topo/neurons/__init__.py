"""What the neurons of a model are: found by one traced run, proved by permuting them."""

from lightning_topo.neurons.discovery import find_neuron_groups
from lightning_topo.neurons.group import NeuronGroup, ParamSlice
from lightning_topo.neurons.registry import register_rule
from lightning_topo.neurons.verify import verify_groups

__all__ = ["NeuronGroup", "ParamSlice", "find_neuron_groups", "register_rule", "verify_groups"]
