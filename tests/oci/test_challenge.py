"""WWW-Authenticate, as registries send it and as RFC 9110 allows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.oci.challenge import Challenge, parse

BEARER = 'Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull,push"'
PARAMETERS = {
    "realm": "https://auth.example/token",
    "service": "r",
    "scope": "repository:a/b:pull,push",
}

CASES = {
    BEARER: [Challenge("bearer", PARAMETERS)],
    'BEARER Realm="x" , SERVICE = y': [Challenge("bearer", {"realm": "x", "service": "y"})],
    'Basic realm="a, b \\"c\\"", ' + BEARER: [
        Challenge("basic", {"realm": 'a, b "c"'}),
        Challenge("bearer", PARAMETERS),
    ],
    "Negotiate, Basic realm=x": [Challenge("negotiate"), Challenge("basic", {"realm": "x"})],
    "Basic": [Challenge("basic")],
    "": [],
    '="': [],
}


@pytest.mark.parametrize("header", CASES)
def test_challenges(header):
    """Several challenges, quoted commas and any case are understood."""
    assert parse(header) == CASES[header]


def test_what_cannot_be_read_is_left_out():
    """A parameter whose quotes never close gives no value."""
    assert parse('Bearer realm="never closed')[0] == Challenge("bearer")


@given(st.text(max_size=400))
def test_any_text_is_survived(text):
    """Whatever a server sends, reading it ends and never raises."""
    for challenge in parse(text):
        assert challenge.scheme == challenge.scheme.lower()
