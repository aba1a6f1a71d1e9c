"""The house rules that a machine can check."""

import re
import tomllib
from pathlib import Path

import pytest

from modelpack.cli import exits

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("modelpack", "cache_daemon") for path in (ROOT / package).rglob("*.py")
)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench" / "README.md"]


def test_files_stay_small():
    """The median file has at most 150 lines, the longest 400."""
    lengths = sorted(len(path.read_text().splitlines()) for path in SOURCES)
    assert lengths[len(lengths) // 2] <= 150
    assert lengths[-1] <= 400


def test_nothing_is_left_unfinished():
    """No marks of unfinished work, no modules named for what they are not."""
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    assert [p for p in SOURCES if words.search(p.read_text())] == []
    names = {"utils", "util", "common", "helpers", "misc", "manager", "base"}
    assert [p for p in SOURCES if p.stem in names or p.parent.name in names] == []


def test_every_dependency_has_a_reason():
    """Each line of dependencies carries a comment that says why."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = [d for extra in project["optional-dependencies"].values() for d in extra]
    for dependency in [*project["dependencies"], *extras]:
        assert re.search(rf'"{re.escape(dependency)}",\s+# \S', text), dependency


def test_nobody_is_told_to_install_another_project():
    """`modelpack` on PyPI is somebody else's: only modelpack-oci is ever installed."""
    for page in [*PAGES, *SOURCES]:
        for command in re.findall(r"(?:pip|uv|pipx)[a-z ]* install ([^\n`]*)", page.read_text()):
            assert not re.search(r"(?<![\w-])modelpack(?!-oci)", command), (page, command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Relative links in the documents lead to files that exist."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_exit_codes_are_documented():
    """docs/cli.md lists exactly the codes that the program uses."""
    table = (ROOT / "docs" / "cli.md").read_text()
    documented = {
        int(n)
        for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
        for n in row.split(",")
    }
    assert documented == set(exits.MEANINGS)
