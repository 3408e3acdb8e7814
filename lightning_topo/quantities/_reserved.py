"""The names that the record and the trackers keep for themselves."""

WORST = "worst"
"""The name in place of a group's, as in `topology/worst/expansion`, for the worst group's value of a quantity."""

RESERVED_PROBES = frozenset(
    {"training", "validation", "gate", "schedule", "coverage", "rewind", "record", "row", "phase"}
)
"""The names under which the monitor itself records values: a user's probe must not have one of them."""

RESERVED_VALUES = frozenset({"step", "epoch", "probe", "group", "reference_step", "n_merged", "schema", "run_id"})
"""The names of the fields that every line of the record has: a value must not have one of them."""
