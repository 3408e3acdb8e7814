"""What an optimizer's options besides the rate do to the two plateaus of batches."""

from collections.abc import Iterable

import torch

from lightning_topo.stability import _optimizer_thresholds as rules
from lightning_topo.stability._optimizer_thresholds import Options, Rule
from lightning_topo.stability._recognition import recognised

_SHAPING = (
    *("momentum", "dampening", "nesterov", "betas", "eps", "alpha", "centered", "rho", "lambd", "amsgrad", "maximize"),
    *("momentum_decay", "beta2_decay", "d", "lr_decay", "bias_correction", "decoupled_weight_decay"),
)
"""Options by which a step changes, beside the rate; a weight decay is no part of either plateau."""


def rule_and_effects(optimizers: Iterable[torch.optim.Optimizer]) -> tuple[str, list[tuple[float, float]]]:
    """The rules in words, and for each parameter group two factors of `total` and `stability` of `ParameterThreshold`.

    As long as the words stay the same, both are proportional to the rate and to these factors: of SGD those of its
    momentum, of Adam that of its first beta.

    >>> theta = torch.zeros(1, requires_grad=True)
    >>> rule_and_effects([torch.optim.SGD([theta], lr=0.1, momentum=0.5)])
    ('SGD maximize=False', [(2.0, 0.3333333333333333)])
    """
    words, effects = [], []
    for optimizer in optimizers:
        found = recognised(optimizer)
        for group in found.optimizer.param_groups:
            known, pair = _effects(found.rule, group)
            options = [f"{name}={group[name]}" for name in _SHAPING if name in group and name not in known]
            words.append(" ".join(["none" if found.rule is None else found.rule.name, *options]))
            effects.append(pair)
    return "; ".join(words), effects


def _effects(rule: Rule | None, group: Options) -> tuple[tuple[str, ...], tuple[float, float]]:
    """The options that the two factors take care of, and these."""
    if rule is rules.SGD:
        found = rules.SGD.threshold({**group, "lr": 1.0}, {}, torch.empty(0))
        return ("momentum", "dampening", "nesterov"), (float(found.total), float(found.stability))
    if rule in (rules.ADAM, rules.RADAM, rules.ADAMAX):
        first = float(group["betas"][0])  # the second one acts through the moments, with time
        return ("betas",), (1.0, (1.0 - first) / (1.0 + first))
    return (), (1.0, 1.0)
