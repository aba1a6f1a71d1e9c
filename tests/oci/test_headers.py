"""Headers come from outside: what is readable is read, the rest says nothing."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.oci import headers

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("123", 123), ("", None), (None, None), ("-1", None), ("1.5", None), ("²", None),
     ("٣", None), (" 1", None), ("9" * 18, 10**18 - 1), ("9" * 5000, None), ("1, 1", None)],
)  # fmt: skip
def test_numbers(text, expected):
    """Only plain ASCII digits, and not absurdly many, are a number."""
    assert headers.number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("bytes 0-9/10", (0, 9)), ("bytes 5-9/*", (5, 9)), ("bytes */10", None), ("0-9/10", None),
     ("bytes 0-9", None), (None, None), ("bytes 0-²/10", None)],
)  # fmt: skip
def test_content_range(text, expected):
    """First and last byte are read from the form of RFC 9110 and no other."""
    assert headers.content_range(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-99", 100),
        ("bytes=0-99", 100),
        ("0-0", 0),
        ("0-1", 2),
        ("5-99", None),
        ("", None),
        (None, None),
    ],
)
def test_uploaded(text, expected):
    """The last byte is inclusive; 0-0 is what docker-registry says of nothing."""
    assert headers.uploaded(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("0", 0), ("86400", 120), ("-5", None), ("soon", None), (None, None), ("9" * 400, None),
     (format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True), 30),
     (format_datetime(datetime.fromtimestamp(NOW - 30, UTC), usegmt=True), 0),
     (format_datetime(datetime.fromtimestamp(NOW + 1e6, UTC), usegmt=True), 120)],
)  # fmt: skip
def test_retry_after(text, expected):
    """Seconds and dates are both understood, and nobody can ask for more than two minutes."""
    assert headers.retry_after(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [('</v2/x/tags/list?n=2&last=b>; rel="next"', "/v2/x/tags/list?n=2&last=b"),
     ("<a>; rel=next", "a"), ('<a>; rel="first", <b>; rel="next"', "b"),
     ('<a>; title="x, y; rel=next", <b>; rel="prev next"', "b"), ("<a>; REL=NEXT", "a"),
     ('<a>; rel="prev"', ""), ("a; rel=next", ""), ("", ""), (None, "")],
)  # fmt: skip
def test_next_link(text, expected):
    """The link with the relation "next" is found among others (RFC 8288)."""
    assert headers.next_link(text) == expected


def test_secrets_in_addresses_are_not_shown():
    """User, password, query and fragment of an address are left out."""
    shown = headers.redacted("https://ann:pw@bucket.example:8443/a/b?X-Amz-Signature=abc#frag")
    assert shown == "https://bucket.example:8443/a/b"


def test_text_from_outside_does_not_reach_the_terminal_as_it_is():
    """Control characters, and what is not ASCII, are replaced; length is bounded."""
    assert headers.printable("a\x1b[31m\r\nb\u202e" + "x" * 500) == "a?[31m??b?" + "x" * 190


@given(st.text(max_size=300))
def test_no_header_is_fatal(text):
    """Whatever a header holds, reading it never raises."""
    headers.number(text)
    headers.content_range(text)
    headers.uploaded(text)
    headers.retry_after(text, NOW)
    headers.next_link(text)
    assert headers.redacted(text).isascii()
