"""Events of any number in bounded memory."""

from lightning_topo.phases import EventList, EventName, Severity, TopologyEvent


def test_the_first_event_of_each_group_and_the_severe_ones_stay():
    events = EventList(most=100)
    for k in range(1000):
        events.add(TopologyEvent(EventName.BETTI_CHANGED, k, 0, f"g{k % 3}", severity=Severity.INFO))
    events.add(TopologyEvent(EventName.TOPOLOGY_BREAKDOWN, 1000, 0, "g0", severity=Severity.ERROR))
    kept = list(events)
    assert len(kept) <= 101
    assert {event.step for event in kept} >= {0, 1, 2, 1000}
    assert len(kept) + events.n_dropped == 1001


def event(step, name=EventName.BETTI_CHANGED, group="", severity=Severity.INFO):
    return TopologyEvent(name, step, 0, group, severity=severity)


def test_an_event_that_comes_again_stands_once_and_last():
    events = EventList()
    for step, key in ((1, "a"), (2, "b"), (3, "a"), (4, None), (5, None)):
        events.add(event(step), key)
    assert [each.step for each in events] == [2, 3, 4, 5]
    assert (len(events), events.n_dropped) == (4, 0)


def test_mild_events_go_before_severe_ones():
    events = EventList(most=40)
    for step in range(400):
        severe = step % 20 == 0
        name = EventName.INSTABILITY if severe else EventName.BETTI_CHANGED
        events.add(event(step, name, severity=Severity.ERROR if severe else Severity.INFO))
    assert {each.step for each in events if each.severity is Severity.ERROR} == set(range(0, 400, 20))


def test_the_first_of_every_group_stays_though_they_are_more_than_fit():
    events = EventList(most=10)
    for step in range(300):
        events.add(event(step, group=f"g{step % 100}"))
    assert {each.step for each in events} >= set(range(100))
    assert len(events) + events.n_dropped == 300
