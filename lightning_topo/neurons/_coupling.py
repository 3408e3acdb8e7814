"""The algebra of axis coupling: axes are ordered products of atoms, which operators unify and refine.

An axis of length 12 that is later seen as 3 x 4 is the product of two atoms; one that was joined from
parts of 5 and 7 is an atom refined into a sum. Two axes that an operator ties together, index by index, are
*unified*: their atoms become one. An atom whose entries cannot be exchanged (data, classes, positions) is
*frozen*. What is left unfrozen when a model has run once are the permutation symmetries of its parameters.
"""

import math
from collections.abc import Iterable


class Atom:
    """A factor of an axis. It stays a leaf until an operator refines it into a product or a sum."""

    __slots__ = (
        "constant",
        "copies",
        "factors",
        "frozen",
        "is_stack",
        "link",
        "outer",
        "reason",
        "size",
        "stack",
        "summands",
        "touched",
    )

    def __init__(self, size: int, *, frozen: bool = False, constant: bool = False) -> None:
        self.size: int = size
        self.frozen: bool = frozen
        self.reason: str = ""
        self.constant: bool = constant  # the tensor has equal entries along this atom
        self.touched: bool = False
        self.link: Atom | None = None
        self.outer: Atom | None = None  # the atom that this one is a factor of
        self.factors: list[Atom] | None = None
        self.summands: list[list[Atom]] | None = None
        self.is_stack: bool = False  # an axis of indices, each with entries of its own along other axes
        self.stack: Atom | None = None  # the axis of indices by which this one has ...
        self.copies: list[list[Atom]] | None = None  # ... a copy for each, not yet unified

    @property
    def root(self) -> "Atom":
        """The atom that stands for all atoms unified with this one."""
        atom = self
        while atom.link is not None:
            atom = atom.link
        return atom

    @property
    def is_leaf(self) -> bool:
        """Whether the atom is neither a product nor a sum."""
        return self.factors is None and self.summands is None


Axis = list[Atom]


def new_axis(size: int, *, frozen: bool = False, constant: bool = False) -> Axis:
    """A new axis of one atom; an axis of length 1 has none."""
    return [] if size == 1 else [Atom(size, frozen=frozen, constant=constant)]


def axis_size(axis: Axis) -> int:
    """The length of an axis."""
    return math.prod(atom.size for atom in axis)


def flat(axis: Axis) -> Axis:
    """The axis with every product expanded, as roots."""
    result: Axis = []
    for atom in axis:
        root = atom.root
        result += [root] if root.factors is None else flat(root.factors)
    return result


def summands(axis: Axis) -> list[Axis]:
    """The axis as a sum of products, nested sums expanded."""
    found: list[Axis] = []
    ahead = [axis]
    while ahead:  # no recursion: a sequence cut position by position is nested as deep as it is long
        part = flat(ahead.pop())
        if len(part) == 1 and part[0].summands is not None:
            ahead += reversed(part[0].summands)
        else:
            found.append(part)
    return found


def sum_axis(parts: list[Axis]) -> Axis:
    """The axis that joins parts end to end."""
    if len(parts) == 1:
        return parts[0]
    atom = Atom(sum(axis_size(part) for part in parts))
    atom.summands = parts
    return [atom]


def is_constant(atom: Atom) -> bool:
    """Whether the tensor is known to be constant along the atom."""
    root = atom.root
    return root.constant and root.is_leaf and not root.touched


def renewed(axis: Axis) -> Axis:
    """The axis for one more use: what is constant along it couples nothing, so it gets a new atom."""
    return [Atom(atom.size, constant=True) if is_constant(atom) else atom for atom in flat(axis)]


def with_copies(atoms: Iterable[Atom]) -> list[Atom]:
    """Leaf atoms, and those of their copies."""
    found: list[Atom] = []
    for atom in atoms:
        found += [atom, *with_copies(leaf for copy in atom.copies or [] for leaf in leaves(copy))]
    return found


def leaves(axis: Axis) -> list[Atom]:
    """All leaf atoms below an axis."""
    found: list[Atom] = []
    ahead = flat(axis)[::-1]
    while ahead:
        atom = ahead.pop()
        if atom.summands is None:
            found.append(atom)
        else:
            ahead += [leaf for part in atom.summands for leaf in flat(part)][::-1]
    return found


def freeze(axis: Axis, reason: str) -> None:
    """Mark the entries of an axis as not exchangeable."""
    ahead = [axis]
    while ahead:
        for atom in flat(ahead.pop()):
            merge_copies(atom)
            if atom.summands is not None:
                ahead += atom.summands
            elif not atom.frozen:
                atom.frozen, atom.touched, atom.reason = True, True, reason


def merge_copies(atom: Atom) -> None:
    """A stacked atom used as a whole: its copies per index must agree."""
    copies, atom.copies = atom.copies, None
    for copy in copies or []:
        unify(copy, [atom])


def is_copied_along(atom: Atom, stacked: Atom) -> bool:
    """Whether an atom has a copy for each index of a stacked one."""
    return bool(atom.copies) and atom.stack is not None and atom.stack.root is stacked.root


def split_atom(atom: Atom, outer: int) -> Axis | None:
    """Refine an atom into a product (outer, inner); None where the parts of a sum do not allow it."""
    atom = atom.root
    if atom.size % outer:
        return None
    inner = atom.size // outer
    if (factors := _split_copies(atom, outer, inner)) is not None:
        return factors
    merge_copies(atom)
    atom = atom.root
    if atom.factors is not None:
        return flat([atom])
    if atom.summands is None:
        constant = is_constant(atom)
        factors = [Atom(size, frozen=atom.frozen, constant=constant) for size in (outer, inner)]
        for factor in factors:
            factor.outer, factor.reason = atom, atom.reason
        atom.factors, atom.touched = factors, True
        return factors
    blocks: list[Axis] = []  # a sum of equal blocks: an axis of indices, and an inner atom with a copy for each
    current: list[Axis] = []
    for term in summands([atom]):
        current.append(term)
        length = sum(axis_size(part) for part in current)
        if length == inner:
            blocks.append(sum_axis(current))
            current = []
        elif length > inner:
            return None
    index, shared = Atom(outer, frozen=True), Atom(inner)
    index.is_stack, index.reason = True, "stacked"
    shared.stack, shared.copies = index, blocks
    return [index, shared]


def _split_copies(atom: Atom, outer: int, inner: int) -> Axis | None:
    """Refine an atom with copies into a product whose factors have them; None where a copy does not allow it."""
    heads: list[Axis] = []
    tails: list[Axis] = []
    for copy in atom.copies or []:
        rest = flat(copy)
        head = take(rest, outer)
        if head is None:
            return None
        heads.append(head)
        tails.append(rest)
    if not heads:
        return None
    factors = [Atom(outer, frozen=atom.frozen), Atom(inner, frozen=atom.frozen)]
    for factor, copies in zip(factors, (heads, tails), strict=True):
        factor.outer, factor.stack, factor.copies = atom, atom.stack, copies
    atom.factors, atom.copies, atom.touched = factors, None, True
    return factors


def take(axis: Axis, size: int) -> Axis | None:
    """Remove and return the leading atoms of total length `size`, refined as needed; None if impossible."""
    if size == 1:
        return [axis.pop(0)] if axis and axis[0].root.size == 1 else []
    taken: Axis = []
    while size > 1:
        if not axis:
            return None
        atom = axis[0].root
        if atom.factors is not None:
            axis[:1] = flat([atom])
        elif size % atom.size == 0:
            axis.pop(0)
            taken += [atom] if atom.size > 1 else []
            size //= atom.size
        elif atom.size % size == 0:
            parts = split_atom(atom, size)
            if parts is None:
                return None
            axis[:1] = parts
        else:
            return None
    return taken


def cut(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """Refine an axis that is one product into the sum of its first `size` entries and the rest."""
    axis = [atom for atom in flat(axis) if atom.size > 1]
    inner = axis_size(axis[1:])
    first = axis[0]
    if size % inner:
        return None
    where = size // inner
    if first.summands is None:
        constant = is_constant(first)
        head, tail = (Atom(n, frozen=first.frozen, constant=constant) for n in (where, first.size - where))
        head.reason = tail.reason = first.reason
        if first.copies:
            head.copies = [slice_axis(copy, 0, where) for copy in first.copies]
            tail.copies = [slice_axis(copy, where, first.size) for copy in first.copies]
            head.stack = tail.stack = first.stack
        first.summands, first.copies, first.touched = [[head], [tail]], None, True
    elif len(axis) == 1:
        return None
    return [*slice_axis([first], 0, where), *axis[1:]], [*slice_axis([first], where, first.size), *axis[1:]]


def unify(left: Axis, right: Axis, reason: str = "lengths that do not factor alike") -> None:
    """Tie two axes of one length together, index by index."""
    left, right = flat(left), flat(right)
    if axis_size(left) == axis_size(right) == 1:
        if left and right:
            _unify_atoms(left[0], right[0])
        return
    left, right = ([atom for atom in side if atom.size > 1] for side in (left, right))
    stacks = [atom.root for atom in left + right if atom.is_stack]
    while left and right:
        a, b = left[0].root, right[0].root
        if a.factors is not None or b.factors is not None:
            left, right = flat(left), flat(right)
        elif a.size == b.size:
            left.pop(0)
            right.pop(0)
            if not _unify_copies(a, b, stacks):
                _unify_atoms(a, b)
        else:
            larger, size = (left, b.size) if a.size > b.size else (right, a.size)
            parts = take(larger, size)
            if parts is None:
                freeze(left + right, reason)
                return
            larger[:0] = parts


def _unify_copies(a: Atom, b: Atom, stacks: list[Atom]) -> bool:
    """Tie two atoms copy by copy, if the axes that they are in hold the same indices; False where they do not.

    An atom that nothing has used yet gets copies of its own: what reads units in turn keeps them apart, as they are.
    """
    if not a.copies:
        a, b = b, a
    if a is b or not a.copies or a.stack is None or a.stack.root not in stacks:
        return False
    if b.copies:
        if b.stack is None or b.stack.root not in stacks or len(b.copies) != len(a.copies):
            return False
    elif b.is_leaf and not b.touched and not b.frozen and not b.constant:
        b.copies, b.stack = [[Atom(b.size)] for _ in a.copies], a.stack
    else:
        return False
    for one, other in zip(a.copies, b.copies, strict=True):
        unify(one, other)
    return True


def _unify_atoms(a: Atom, b: Atom) -> None:
    """Make two atoms of one size the same."""
    if a is b:
        return
    merge_copies(a)
    merge_copies(b)
    a, b = a.root, b.root
    if a is b:
        return
    if a.factors is not None or b.factors is not None:
        unify([a], [b])
    elif a.summands is not None and b.summands is not None:
        _unify_sums(a, b)
    else:
        if a.summands is not None:
            a, b = b, a
        if a.frozen:
            freeze([b], a.reason)
        if b.summands is not None and not is_constant(a):
            for leaf in leaves([b]):  # zeros joined between other parts move with what they are added to
                leaf.touched = True
        a.link = b
        b.is_stack = b.is_stack or a.is_stack
        a.touched = b.touched = True


def _unify_sums(a: Atom, b: Atom) -> None:
    """Tie two sums together part by part, cutting the longer part."""
    left, right = summands([a])[::-1], summands([b])[::-1]  # the next part is the last
    while left and right:
        # What was unified before may have cut it.
        left += summands(left.pop())[::-1]
        right += summands(right.pop())[::-1]
        x, y = axis_size(left[-1]), axis_size(right[-1])
        if x == y:
            unify(left.pop(), right.pop())
        else:
            longer = left if x > y else right
            parts = cut(longer.pop(), min(x, y))
            if parts is None:
                freeze([a], "parts that do not match")
                freeze([b], "parts that do not match")
                return
            longer += parts[::-1]


def slice_axis(axis: Axis, start: int, stop: int) -> Axis:
    """Entries start..stop of an axis, which becomes a sum where it has not been one."""
    if (start, stop) == (0, axis_size(axis)):
        return axis
    kept: list[Axis] = []
    offset = 0
    for term in summands(axis):
        length = axis_size(term)
        low, high = max(start - offset, 0), min(stop - offset, length)
        offset += length
        if low >= high:
            continue
        if high < length:
            parts = cut(term, high)
            if parts is None:
                freeze(axis, "a slice across its factors")
                return new_axis(stop - start, frozen=True)
            term = parts[0]
        if low > 0:
            parts = cut(term, low)
            if parts is None:
                freeze(axis, "a slice across its factors")
                return new_axis(stop - start, frozen=True)
            term = parts[1]
        kept.append(term)
    return sum_axis(kept) if kept else new_axis(stop - start, frozen=True)
