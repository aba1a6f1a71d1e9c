"""The retry policy: what is tried again, how often, and how long it waits in between."""

import pytest

from modelpack.oci.retry import RetryPolicy
from modelpack.spec.errors import NotFound, ProtocolViolation, Unavailable


class Failing:
    """Raises the errors it is given, then succeeds."""

    def __init__(self, *errors) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def pauses():
    return []


def policy(pauses, **changes):
    return RetryPolicy(sleep=pauses.append, **changes)


def test_it_goes_on_until_it_works(pauses):
    """Errors that may pass are tried again, with pauses that grow and differ."""
    do = Failing(Unavailable("a"), ProtocolViolation("b"), Unavailable("c"))
    assert policy(pauses).run(do) == "done"
    assert [low <= pause <= 2 * low for pause, low in zip(pauses, (0.25, 0.5, 1), strict=True)] == [
        True
    ] * 3


def test_what_is_permanent_is_not_tried_again(pauses):
    """An error that no repetition can cure is raised at once."""
    do = Failing(NotFound("gone"))
    with pytest.raises(NotFound):
        policy(pauses).run(do)
    assert (do.calls, pauses) == (1, [])


def test_it_gives_up(pauses):
    """After five tries the last error is raised."""
    do = Failing(*(Unavailable(str(number)) for number in range(9)))
    with pytest.raises(Unavailable, match="4"):
        policy(pauses).run(do)
    assert (do.calls, len(pauses)) == (5, 4)


def test_the_other_side_may_say_when(pauses):
    """Retry-After is obeyed, but not beyond the longest pause."""
    do = Failing(Unavailable("a", retry_after=7), Unavailable("b", retry_after=9999))
    policy(pauses, longest=60).run(do)
    assert pauses == [7, 60]


def test_the_whole_time_is_bounded(pauses):
    """However many tries are allowed, no pause is longer than the longest."""
    do = Failing(*(Unavailable("x") for _ in range(29)))
    policy(pauses, tries=30, longest=3).run(do)
    assert max(pauses) <= 3
