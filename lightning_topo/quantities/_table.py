"""The table: one row a quantity."""

from lightning_topo.quantities._row import Direction, Keep, Quantity, Scope

_G, _N, _B = Scope.GROUP, Scope.NETWORK, Scope.BOTH
_HIGH, _LOW, _ANY = Direction.HIGH_IS_BAD, Direction.LOW_IS_BAD, Direction.NEUTRAL


def _silent(name: str, probe: str, scope: Scope, title: str, sentence: str) -> Quantity:
    return Quantity(name, probe, scope, _ANY, title, sentence, published=False)


_TABLE = (
    # The step map.
    Quantity(
        "critical_ratio", "distortion", _B, _HIGH, "Critical ratio r", "eta / eta*: critical at 1.", keep=Keep.MAX
    ),
    Quantity(
        "critical_ratio_bound",
        "coverage",
        _B,
        _HIGH,
        "Bound of r",
        "An upper bound of the critical ratio, at every step.",
        keep=Keep.MAX,
    ),
    Quantity(
        "proposed_critical_ratio",
        "distortion",
        _B,
        _HIGH,
        "Proposed r",
        "The critical ratio of the update that a guard has shrunk.",
        keep=Keep.MAX,
    ),
    Quantity(
        "contraction",
        "distortion",
        _G,
        _LOW,
        "Contraction in a step",
        "The smallest ratio of a pair's distance after the step to before.",
        keep=Keep.MIN,
    ),
    Quantity(
        "expansion",
        "distortion",
        _G,
        _HIGH,
        "Expansion in a step",
        "The largest ratio of a pair's distance after the step to before.",
        keep=Keep.MAX,
    ),
    Quantity(
        "log_distortion",
        "distortion",
        _G,
        _HIGH,
        "Log-distortion in a step",
        "log(expansion / contraction) of one step.",
        keep=Keep.MAX,
    ),
    Quantity(
        "span_ratio",
        "distortion",
        _G,
        _HIGH,
        "Critical ratio of a span",
        "The critical ratio of the whole way since the last snapshot.",
        keep=Keep.MAX,
    ),
    Quantity(
        "span_contraction",
        "distortion",
        _G,
        _LOW,
        "Contraction in a span",
        "The smallest ratio of a pair's distance now to at the last snapshot.",
        keep=Keep.MIN,
    ),
    Quantity(
        "span_expansion",
        "distortion",
        _G,
        _HIGH,
        "Expansion in a span",
        "The largest ratio of a pair's distance now to at the last snapshot.",
        keep=Keep.MAX,
    ),
    _silent("critical_i", "distortion", _G, "First neuron of the pair", "One of the two neurons that attain r."),
    _silent("critical_j", "distortion", _G, "Second neuron of the pair", "The other of the two that attain r."),
    _silent("twins_split", "distortion", _G, "Twins split", "Equal neurons that the step has told apart."),
    # Since the start.
    Quantity(
        "total_contraction",
        "distortion",
        _G,
        _LOW,
        "Contraction since the start",
        "The smallest ratio of a pair's distance now to when training began.",
    ),
    Quantity(
        "total_expansion",
        "distortion",
        _G,
        _HIGH,
        "Expansion since the start",
        "The largest ratio of a pair's distance now to when training began.",
    ),
    Quantity(
        "total_log_distortion",
        "distortion",
        _G,
        _HIGH,
        "Log-distortion since the start",
        "log(total_expansion / total_contraction).",
    ),
    # The fate of the neurons.
    Quantity(
        "distinct_neurons",
        "distortion",
        _G,
        _LOW,
        "Distinct neurons",
        "Neurons that rounding can tell apart: fewer than there are means some are merged.",
        "neurons",
    ),
    Quantity(
        "independent_neurons",
        "fate",
        _G,
        _LOW,
        "Independent neurons",
        "Neurons that are not a multiple of another.",
        "neurons",
    ),
    Quantity(
        "vanishing_neurons",
        "fate",
        _G,
        _HIGH,
        "Vanishing neurons",
        "Neurons whose weights are going to 0.",
        "neurons",
    ),
    Quantity(
        "aligned_clusters",
        "fate",
        _G,
        _LOW,
        "Aligned clusters",
        "Directions that are left when nearly parallel neurons count as one.",
        "clusters",
    ),
    Quantity(
        "effective_neurons",
        "fate",
        _G,
        _LOW,
        "Effective neurons",
        "How many equal shares the neurons' directions are worth.",
        "neurons",
    ),
    Quantity(
        "largest_multiplicity",
        "fate",
        _G,
        _HIGH,
        "Largest multiplicity",
        "Neurons in the largest set of equal ones.",
        "neurons",
    ),
    _silent("measured_neurons", "fate", _G, "Measured neurons", "How many neurons these counts are of."),
    _silent("vanishing_neurons_at_start", "fate", _G, "Vanishing at the start", "Those when training began."),
    _silent("aligned_clusters_at_start", "fate", _G, "Clusters at the start", "Those when training began."),
    # Persistence.
    Quantity(
        "betti_k", "persistence", _G, _ANY, "Betti number b", "Features at a fixed share of the cloud's diameter."
    ),
    Quantity(
        "total_persistence_k", "persistence", _G, _ANY, "Total persistence", "The sum of the bars' lengths.", "distance"
    ),
    Quantity("entropy_k", "persistence", _G, _ANY, "Persistence entropy", "How evenly the bars' lengths are spread."),
    Quantity("max_persistence_k", "persistence", _G, _ANY, "Longest bar", "The length of the longest bar.", "distance"),
    Quantity(
        "log_bottleneck_k",
        "persistence",
        _G,
        _HIGH,
        "Change of the diagram",
        "The log-bottleneck distance to the diagram captured before.",
    ),
    Quantity(
        "log_bottleneck_bound",
        "persistence",
        _G,
        _HIGH,
        "Bound of the change",
        "What the distortion since the capture before can explain of the change.",
    ),
    Quantity(
        "landmark_error",
        "persistence",
        _G,
        _HIGH,
        "Error of landmarks",
        "2 rho / diameter: what landmarks leave unknown of loops. Dimension 0 is exact.",
    ),
    _silent(
        "vacuous_k", "persistence", _G, "Says nothing", "Whether the landmarks' bound allows a diagram without bars."
    ),
    # Stability.
    Quantity("sharpness", "sharpness", _N, _HIGH, "Sharpness", "The largest eigenvalue of the loss's Hessian."),
    Quantity(
        "sharpness_ratio",
        "sharpness",
        _N,
        _HIGH,
        "Sharpness ratio",
        "The sharpness the optimizer sees over its stability threshold: the edge is at 1.",
    ),
    Quantity(
        "batch_sharpness_ratio",
        "sharpness",
        _N,
        _HIGH,
        "Batch sharpness ratio",
        "The curvature along a minibatch's own gradient, over its threshold.",
    ),
    Quantity(
        "critical_sharpness",
        "critical_sharpness",
        _N,
        _HIGH,
        "Critical sharpness",
        "1 / s, s the smallest multiple of the step taken that no longer lowers the loss.",
    ),
    Quantity(
        "directional_ratio",
        "sharpness",
        _N,
        _HIGH,
        "Directional ratio",
        "The curvature along the step taken, for any optimizer: the edge is at 1.",
    ),
    Quantity(
        "eta_lambda", "sharpness", _N, _HIGH, "eta K", "The paper's sufficient condition, as a point estimate: below 1."
    ),
    Quantity(
        "batch_sharpness",
        "sharpness",
        _N,
        _HIGH,
        "Batch sharpness",
        "The curvature along a minibatch's own gradient.",
    ),
    Quantity(
        "swap_curvature", "sharpness", _G, _HIGH, "Swap curvature", "The curvature in the direction that swaps a pair."
    ),
    Quantity("swap_ratio", "sharpness", _G, _HIGH, "Swap ratio", "The learning rate times the swap curvature."),
    _silent("residual", "sharpness", _N, "Residual", "The eigenvalue's residual."),
    _silent("ratio_residual", "sharpness", _N, "Residual of the ratio", "The sharpness ratio's residual."),
    _silent("n_hvp", "sharpness", _N, "Hessian products", "Hessian-vector products that were spent."),
    _silent("converged", "sharpness", _N, "Converged", "Whether the eigenvalue has converged."),
    _silent("exact", "sharpness", _N, "Exact", "Whether the Hessian products are exact."),
    _silent("batch_noise", "step_edge", _N, "Batch noise", "The share of a batch's gradient that no other shares."),
    _silent(
        "critical_converged",
        "critical_sharpness",
        _N,
        "Critical sharpness converged",
        "Whether s is known within the tolerance.",
    ),
    _silent("critical_noise", "critical_sharpness", _N, "Noise", "Half the distance between two batches' values."),
    _silent("n_forwards", "critical_sharpness", _N, "Forward passes", "Forward passes that were spent."),
    _silent("micro_batch", "sharpness", _N, "Micro-batch", "Samples in one part of the probe batch."),
    # The training and the monitor itself.
    Quantity("phase", "phase", _N, _HIGH, "Phase", "The code of the current phase."),
    Quantity("overhead", "phase", _N, _ANY, "Time spent in the monitor", "Its share of the wall time."),
    Quantity("stopped", "gate", _N, _ANY, "Stopped", "1 once a gate has stopped the training."),
    Quantity(
        "coverage",
        "coverage",
        _N,
        _LOW,
        "Coverage",
        "The share of the steps so far that are certified, in every group.",
    ),
    Quantity(
        "coverage_span",
        "coverage",
        _N,
        _LOW,
        "Coverage by spans",
        "The share of the steps so far that only a span certifies.",
    ),
    Quantity("learning_rate", "training", _N, _ANY, "Learning rate", "That of the first optimizer's first group."),
    Quantity(
        "critical_learning_rate",
        "training",
        _N,
        _LOW,
        "Critical learning rate eta*",
        "eta / r: the learning rate at which the step would have been critical.",
        keep=Keep.MIN,
    ),
    _silent("loss", "training", _N, "Loss", "The training loss of the step's batch."),
    _silent("quiet_captures", "gate", _N, "Quiet captures", "Captures in a row without a change."),
    _silent("from", "coverage", _G, "First step", "The first step of a run of equal states."),
    _silent("state", "coverage", _G, "State", "The state of these steps."),
    _silent("bound", "coverage", _G, "Largest bound", "The largest bound of r over these steps."),
)

QUANTITIES = {row.name: row for row in _TABLE}
"""Every row, by its name; families under `<name>_k`."""
