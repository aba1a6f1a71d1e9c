import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.spec.digest import Digest
from modelpack.spec.errors import BadReference
from modelpack.spec.reference import Reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "target"),
    [
        ("registry.example.com/llm/llama:v3", "registry.example.com", "llm/llama", "v3", "v3"),
        ("localhost:5000/a", "localhost:5000", "a", "", "latest"),
        ("localhost/a", "localhost", "a", "", "latest"),
        ("[::1]:5000/a/b:x", "[::1]:5000", "a/b", "x", "x"),
        ("127.0.0.1:5000/a__b/c-d:1.0_x", "127.0.0.1:5000", "a__b/c-d", "1.0_x", "1.0_x"),
        ("llama", "docker.io", "library/llama", "", "latest"),
        ("org/llama:v1", "docker.io", "org/llama", "v1", "v1"),
        ("index.docker.io/org/x", "docker.io", "org/x", "", "latest"),
        (f"h.io/a@sha256:{HEX}", "h.io", "a", "", f"sha256:{HEX}"),
        (f"h.io/a:t@sha256:{HEX}", "h.io", "a", "t", f"sha256:{HEX}"),
    ],
)
def test_registry_references(text, registry, repository, tag, target):
    """Registry, repository, tag and digest are told apart as Docker does it."""
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag) == (registry, repository, tag)
    assert found.target == target
    assert not found.layout


@pytest.mark.parametrize(
    ("text", "layout", "tag"),
    [
        ("oci:dir", "dir", ""),
        ("oci:/a/b c:v1", "/a/b c", "v1"),
        ("oci:/a:b/c", "/a:b/c", ""),
        ("oci:../x:latest", "../x", "latest"),
        (f"oci:d:t@sha256:{HEX}", "d", "t"),
    ],
)
def test_layout_references(text, layout, tag):
    """A colon belongs to the directory unless a tag can follow it."""
    found = Reference.parse(text)
    assert (found.layout, found.tag, found.registry) == (layout, tag, "")


@pytest.mark.parametrize(
    "text",
    [
        "", ":tag", "https://h.io/a", "h.io/A", "h.io/a:", "h.io/a:-x", "h.io/a@sha256:12",
        "h.io/a@md5:" + HEX, "h.io/a//b", "h.io/", "oci:", "oci::tag", "h.io/a b", "h.io/" + "a" * 300,
        "h_x.io:5000/a", f"h.io/a@sha256:{HEX.upper()}",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text):
    """Anything else is refused by one line that shows the form."""
    with pytest.raises(BadReference) as caught:
        Reference.parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_parsing_never_fails_otherwise(text):
    """Whatever the text, the answer is a reference that prints and parses again, or BadReference."""
    try:
        found = Reference.parse(text)
    except BadReference:
        return
    assert Reference.parse(str(found)) == found


def test_pinning_keeps_the_place():
    """`at` adds a digest and nothing else."""
    digest = Digest("sha256", HEX)
    assert str(Reference.parse("h.io/a:t").at(digest)) == f"h.io/a:t@sha256:{HEX}"
