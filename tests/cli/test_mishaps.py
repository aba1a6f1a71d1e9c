"""Things that happen to people, each found by somebody who tried."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.test_cli import MODELPACK, run
from tests.support.weights import tree


@pytest.fixture
def layout(model, tmp_path):
    run("push", model, f"oci:{tmp_path / 'layout'}:v1")
    return f"oci:{tmp_path / 'layout'}:v1"


def test_directories_with_our_name_are_not_ours(layout, tmp_path):
    """A `.NAME.modelpack` that somebody else made, or a link to one, is refused and left alone."""
    precious = tmp_path / "precious" / "sub"
    precious.mkdir(parents=True)
    (precious / "f").write_text("precious")
    staging = tmp_path / ".out.modelpack"
    staging.symlink_to(tmp_path / "precious")
    run("pull", layout, tmp_path / "out", code=9)
    staging.unlink()
    staging.mkdir()
    (staging / "mine").write_text("mine")
    run("pull", layout, tmp_path / "out", code=9)
    assert (staging / "mine").read_text() == "mine"
    assert (precious / "f").read_text() == "precious"
    own = tmp_path / "with" / ".modelpack" / "mystuff"
    own.mkdir(parents=True)
    (own / "f").write_text("x")
    run("pull", layout, tmp_path / "with")
    assert (own / "f").read_text() == "x"


def test_pulling_into_a_layout_is_refused(layout, tmp_path):
    """A layout is not a place for model files."""
    run("pull", layout, tmp_path / "layout", code=9)


@pytest.mark.parametrize("where", ["file", "file/below", "/dev/null"])
def test_a_file_is_not_a_directory(where, layout, tmp_path):
    """DIR, or what it is below, may be a file: that is a conflict, not a bug."""
    (tmp_path / "file").write_text("x")
    run("pull", layout, tmp_path / where, code=9)


def test_leftovers_go_when_a_pull_ends_well(layout, model, tmp_path):
    """What an interrupted pull of something else staged does not stay."""
    run("pull", layout, tmp_path / "out")
    stale = tmp_path / ".out.modelpack" / ("a" * 32)
    stale.mkdir(parents=True)
    (stale / "1").write_text("x")
    run("pull", layout, tmp_path / "out")
    assert not stale.parent.exists()
    assert tree(tmp_path / "out") == tree(model)


def test_a_damaged_layout_is_mended_by_a_push(layout, model, tmp_path):
    """A blob that lost its end is uploaded again, not believed."""
    blobs = sorted((tmp_path / "layout/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    blobs[-1].chmod(0o644)
    os.truncate(blobs[-1], 1_000_000)
    run("push", model, layout)
    run("pull", layout, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(model)


def test_a_layout_in_what_is_packed_is_refused(model):
    """Packing a directory into itself would never give the same digest twice."""
    run("push", model, f"oci:{model / 'layout'}:v1", code=2)
    assert not (model / "layout").exists()


def test_empty_arguments_are_not_the_current_directory(layout):
    """An unset variable publishes nothing and fills nothing."""
    run("push", "", layout, code=2)
    run("pull", layout, "", code=2)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "127.0.0.1:99999/x:v1"], 2), (["inspect", "a" * 400 + ".com/x:v1"], 2),
        (["inspect", "user:pw@127.0.0.1:5987/m:v1"], 2), (["inspect", "oci:lay:"], 2),
        (["push", ".", "oci:x:v1", "--prefix", "../x"], 2), (["push", ".", "oci:x:v1", "--prefix", "/x"], 2),
        (["push", ".", "oci:x:v1", "--annotation", "dev.modelpack.format=9"], 2),
        (["push", ".", "oci:x:v1", "--annotation", "a\x1b=b"], 2), (["pull", "--json"], 2),
        (["push", ".", "oci:x:v1", "--include", "[z-a]"], 2), (["push", ".", "oci:x:v1", "-j", "0"], 2),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_one_object(arguments, code, tmp_path):
    """Whatever is wrong with the arguments: exit code 2, one line, and with --json one object."""
    (tmp_path / "f").write_text("x")
    done = run(*arguments, "--json", code=code, cwd=tmp_path)
    assert json.loads(done.stdout)["error"]["exit_code"] == code
    assert done.stderr.startswith("modelpack: ")
    assert done.stderr.count("\n") <= 2


def test_names_that_are_not_utf8(layout, tmp_path):
    """Arguments of any bytes are handled: a directory may be called anything."""
    odd = os.fsencode(tmp_path) + b"/\xff"
    subprocess.run([*MODELPACK, "pull", layout, odd, "--json"], check=True, capture_output=True)
    assert os.path.isdir(odd)
    done = subprocess.run(
        [*MODELPACK, "pull", b"oci:lay:\xff", "x", "--json"], check=False, capture_output=True
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "BadReference"


def test_a_locale_without_unicode(model, tmp_path):
    """File names are UTF-8, even where the locale says ASCII."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    reference = f"oci:{tmp_path / 'l'}:v1"
    run("push", model, reference, env=environment)
    run("pull", reference, tmp_path / "out", env=environment)
    run("inspect", reference, env=environment)
    assert tree(tmp_path / "out") == tree(model)


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), (">&- 2>&-", 0), (">/dev/full", 8), ("2>&-", 0)],
)
def test_closed_and_full_streams(redirection, code, layout):
    """A standard stream that is closed is no bug; one that is full is an error of the disk."""
    command = " ".join([*MODELPACK, "inspect", layout, redirection])
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_control_c_while_starting(tmp_path):
    """An interrupt that comes before anything happened is answered in the same way."""
    code = (
        "import sys, builtins; real = builtins.__import__\n"
        "def slow(name, *rest, **more):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = slow; sys.argv = ['modelpack', 'version', '--json']\n"
        "from modelpack.cli.entry import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 130


def test_a_damaged_memory_is_replaced(layout, tmp_path):
    """A state file that is no database costs nothing but what it remembered."""
    cache = os.path.join(os.environ["XDG_CACHE_HOME"], "modelpack")
    with open(os.path.join(cache, "state-v2.sqlite"), "wb") as file:
        file.write(os.urandom(10_000))
    for name in os.listdir(cache):
        if name != "state-v2.sqlite":
            os.unlink(os.path.join(cache, name))
    run("pull", layout, tmp_path / "out")
    run("pull", layout, tmp_path / "out")
    assert "ok" in run("verify", tmp_path / "out").stdout


def test_names_cannot_forge_lines(tmp_path):
    """A newline in a name is shown, not printed."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a\nok: forged").write_text("x")
    assert "\nok: forged" not in run("inspect", tmp_path / "m").stdout
