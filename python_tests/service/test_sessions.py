"""Sessions of the service: bounded in number, length and age."""

from __future__ import annotations

from solid_ext.service.sessions import Sessions


def test_the_session_that_was_used_the_longest_ago_makes_room() -> None:
    sessions = Sessions(most=2, seconds=10, clock=lambda: 0.0)
    first, second = sessions.begin(), sessions.begin()
    assert sessions.events(first) is not None
    third = sessions.begin()
    assert [sessions.events(name) is not None for name in (first, second, third)] == [True, False, True]


def test_a_session_ends_after_its_time_without_use() -> None:
    now = 0.0
    sessions = Sessions(most=9, seconds=10, clock=lambda: now)
    used, unused = sessions.begin(), sessions.begin()
    now = 8.0
    assert sessions.events(used) is not None
    now = 11.0
    assert sessions.events(unused) is None
    assert sessions.events(used) is not None
    assert len(sessions) == 1


def test_a_session_keeps_its_last_thousand_events() -> None:
    sessions = Sessions(most=1, seconds=10)
    events = sessions.events(sessions.begin())
    assert events is not None
    events.extend(range(1500))
    assert list(events) == list(range(500, 1500))


def test_names_are_not_to_be_guessed() -> None:
    sessions = Sessions(most=100, seconds=10)
    names = {sessions.begin() for _ in range(100)}
    assert len(names) == 100
    assert min(map(len, names)) >= 22
