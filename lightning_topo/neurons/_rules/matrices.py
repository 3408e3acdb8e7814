"""Functions of matrices: diagonals, exponentials, inverses, decompositions.

Where rows and columns are one axis, as in a matrix exponential, both are reindexed together.
"""

from torch import Tensor

from lightning_topo.neurons._coupling import Atom, Axis, axis_size, new_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


def square(trace: CouplingTrace, tensor: Tensor) -> list[Axis]:
    """The axes of a batch of square matrices whose rows and columns are reindexed alike."""
    axes = trace.axes(tensor)
    trace.unify(axes[-2], axes[-1])
    return axes


@aten_rule("eye")
def identity(trace: CouplingTrace, call: OperatorCall) -> None:
    rows, columns = call.out.shape
    if rows == columns and rows > 1:
        atom = Atom(rows)
        trace.assign(call.out, [[atom], [atom]])
    else:
        trace.assign_data(call.out)


@aten_rule("diag_embed")
def diagonal_matrix(trace: CouplingTrace, call: OperatorCall) -> None:
    """The last axis becomes rows and columns of a diagonal matrix."""
    *axes, entries = trace.axes(call.inputs[0])
    dims = sorted(call.get(name, default) % call.out.dim() for name, default in (("dim1", -2), ("dim2", -1)))
    sides: tuple[Axis, Axis] = (entries, entries)
    if call.get("offset", 0):
        trace.freeze(entries, "an off-diagonal")
        sides = (new_axis(call.out.shape[dims[0]], frozen=True), new_axis(call.out.shape[dims[1]], frozen=True))
    for dim, side in zip(dims, sides, strict=True):
        axes.insert(dim, side)
    trace.assign(call.out, axes)


@aten_rule("diagonal", "diagonal_copy", "linalg_diagonal", "trace")
def diagonal(trace: CouplingTrace, call: OperatorCall) -> None:
    """Rows and columns are tied; what is left of both stands last."""
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    first, second = (call.get(name, default) % tensor.dim() for name, default in (("dim1", 0), ("dim2", 1)))
    rows, columns = axes[first], axes[second]
    rest = [axis for i, axis in enumerate(axes) if i not in (first, second)]
    if call.get("offset", 0) or axis_size(rows) != axis_size(columns):
        trace.freeze(rows, "an off-diagonal")
        trace.freeze(columns, "an off-diagonal")
        rows = new_axis(call.out.shape[-1], frozen=True)
    else:
        trace.unify(rows, columns)
    if call.name == "trace":
        trace.reduce(tensor, rows)
        trace.assign(call.out, [])
    else:
        trace.assign(call.out, [*rest, rows])


@aten_rule("linalg_matrix_exp", "matrix_exp", "linalg_matrix_power", "matrix_power")
def matrix_function(trace: CouplingTrace, call: OperatorCall) -> None:
    trace.assign(call.out, square(trace, call.inputs[0]))


@aten_rule("linalg_inv_ex", "linalg_inv", "inverse")
def inverse(trace: CouplingTrace, call: OperatorCall) -> None:
    """Rows of the inverse go with the columns of the matrix; pivots are an inner matter."""
    *batch, rows, columns = trace.axes(call.inputs[0])
    trace.assign(call.out, [*batch, columns, rows])
    for errors in call.outputs[1:]:
        trace.assign(errors, batch)


@aten_rule("_linalg_solve_ex", "linalg_solve_ex")
def solve(trace: CouplingTrace, call: OperatorCall) -> None:
    """A X = B, or X A = B."""
    *batch, rows, columns = trace.axes(call.inputs[0])
    known = trace.axes(call.inputs[1])
    if len(known) != len(batch) + 2 or not call.get("left", True):
        for axis in [*batch, rows, columns, *known]:
            trace.freeze(axis, "a system of equations of this form")
        for out in call.outputs:
            trace.assign_data(out)
        return
    for axis, other in zip([*batch, rows], known, strict=False):
        trace.unify(axis, other)
    trace.assign(call.out, [*batch, columns, known[-1]])
    for factors in call.outputs[1:]:
        trace.assign_data(factors)


@aten_rule("_linalg_det", "_linalg_slogdet")
def determinant(trace: CouplingTrace, call: OperatorCall) -> None:
    """Reordering rows and columns alike leaves the determinant as it is."""
    *batch, rows, _ = square(trace, call.inputs[0])
    trace.reduce(call.inputs[0], rows)
    for out in call.outputs:
        if out.dim() == len(batch):
            trace.assign(out, batch)
        else:
            trace.assign_data(out)


@aten_rule("_linalg_svd")
def singular_values(trace: CouplingTrace, call: OperatorCall) -> None:
    """A = U S V: rows of A are rows of U, columns of A are columns of V; singular values are ranked."""
    *batch, rows, columns = trace.axes(call.inputs[0])
    left, values, right = call.outputs
    trace.reduce(call.inputs[0], rows)
    trace.reduce(call.inputs[0], columns)
    ranks = new_axis(values.shape[-1], frozen=True)
    trace.assign(values, [*batch, ranks])
    if left.numel():
        trace.assign(left, [*batch, rows, new_axis(left.shape[-1], frozen=True)])
        trace.assign(right, [*batch, new_axis(right.shape[-2], frozen=True), columns])


@aten_rule("_linalg_eigh")
def eigenvalues(trace: CouplingTrace, call: OperatorCall) -> None:
    *batch, rows, _ = square(trace, call.inputs[0])
    values, vectors = call.outputs
    trace.reduce(call.inputs[0], rows)
    ranks = new_axis(values.shape[-1], frozen=True)
    trace.assign(values, [*batch, ranks])
    if vectors.numel():
        trace.assign(vectors, [*batch, rows, ranks])
