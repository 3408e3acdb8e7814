"""The names that the record and the trackers keep for themselves."""

WORST = "worst"
"""Under this name, in place of a group's, trackers get the worst group's value of every quantity."""

RESERVED_PROBES = frozenset(
    {"training", "validation", "gate", "schedule", "coverage", "rewind", "record", "row", "phase"}
)
"""The names under which the monitor itself measures: no probe of a user's may have one of them."""

RESERVED_VALUES = frozenset({"step", "epoch", "probe", "group", "reference_step", "n_merged", "schema", "run_id"})
"""The names of a recorded line's own fields: no value may have one of them."""
