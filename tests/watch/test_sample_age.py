"""Which of several losses is evaluated on old samples."""

from lightning_topo._tape import Tape
from lightning_topo._tape.closing import empty_tape
from lightning_topo._watch.sample_age import SampleAge, Stale


def tape(owner: str | None, obstacle: str = "") -> Tape:
    return empty_tape(obstacle).replaced(owners=None if owner is None else frozenset({owner}))


def test_a_loss_is_stale_from_its_refusal_to_its_next_acceptance():
    age = SampleAge()
    age.note(1, [tape("a")], [])
    assert age.take_news() == (None, False)
    age.note(5, [], [tape("a", "why")])
    age.note(9, [], [tape("a", "another reason")])
    assert age.take_news() == (Stale(1, 5, "why"), False)
    assert age.take_news() == (None, False)
    age.note(13, [tape("a")], [])
    assert age.take_news() == (None, True)
    assert age.take_news() == (None, False)


def test_of_two_networks_by_turns_each_is_known_for_itself():
    age = SampleAge()
    age.note(1, [tape("g")], [])
    age.note(2, [tape("d")], [])
    age.note(3, [], [tape("g", "why")])
    age.note(4, [tape("d")], [])
    assert age.take_news() == (Stale(1, 3, "why"), False)


def test_a_loss_that_never_had_samples_is_not_stale():
    age = SampleAge()
    age.note(1, [tape("a")], [tape("b", "why")])
    assert age.take_news() == (None, False)


def test_a_step_that_was_given_up_before_its_owners_are_known_counts_for_all():
    age = SampleAge()
    age.note(1, [tape("a")], [])
    age.note(2, [], [tape(None, "why")])
    assert age.take_news() == (Stale(1, 2, "why"), False)


def test_what_has_no_samples_any_more_is_forgotten():
    age = SampleAge()
    age.note(1, [tape("a"), tape("b")], [])
    age.note(2, [tape("b")], [tape("a", "why")])
    assert age.take_news()[0] is not None
    age.forget_all_but([tape("b")])
    assert age.take_news() == (None, True)


def test_another_loss_that_goes_stale_is_told_while_one_is():
    age = SampleAge()
    age.note(1, [tape("g"), tape("d")], [])
    age.note(2, [tape("d")], [tape("g", "why")])
    assert age.take_news() == (Stale(1, 2, "why"), False)
    age.note(3, [], [tape("g", "why"), tape("d", "because")])
    assert age.take_news() == (Stale(2, 3, "because"), False)
    age.note(4, [tape("d")], [tape("g", "why")])
    assert age.take_news() == (None, False)
    age.note(5, [], [tape("d", "again")])
    assert age.take_news() == (Stale(4, 5, "again"), False)
    age.note(6, [tape("g"), tape("d")], [])
    assert age.take_news() == (None, True)
