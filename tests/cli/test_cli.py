"""The command line as scripts see it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from modelpack.cli import exits
from modelpack.spec import errors
from tests.support.weights import tree

MODELPACK = [sys.executable, "-m", "modelpack.cli.entry"]


def run(*arguments, code=0, **options):
    done = subprocess.run(
        [*MODELPACK, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_json_is_one_object_with_the_promised_keys(registry, name, model, tmp_path):
    """push and pull say digest, reference, bytes, seconds, files and chunks; nothing else is on stdout."""
    reference = f"{registry.host}/{name}:v1"
    promised = {
        "digest", "reference", "bytes_total", "bytes_moved", "bytes_reused", "seconds", "files", "chunks",
    }  # fmt: skip
    pushed = json.loads(run("push", model, reference, "--json").stdout)
    pulled = json.loads(run("pull", reference, tmp_path / "out", "--json").stdout)
    assert promised <= pushed.keys()
    assert promised <= pulled.keys()
    assert pushed["digest"] == pulled["digest"]
    assert pulled["reference"] == f"{reference}@{pushed['digest']}"
    assert tree(tmp_path / "out") == tree(model)
    found = json.loads(run("inspect", reference, "--json").stdout)
    assert (found["tensors"], found["dtypes"].keys()) == (8, {"BF16"})
    assert found["estimated_vram_bytes"] > 2 << 30
    assert (
        json.loads(run("ls", f"{registry.host}/{name}", "--json").stdout)["tags"][0]["tag"] == "v1"
    )
    assert json.loads(run("verify", tmp_path / "out", "--json").stdout)["ok"]
    assert json.loads(run("diff", reference, model, "--json").stdout)["identical"]
    copied = json.loads(run("copy", reference, f"oci:{tmp_path / 'layout'}:v1", "--json").stdout)
    assert copied["digest"] == pushed["digest"]
    assert json.loads(run("rm", reference, "--json").stdout)["digest"] == pushed["digest"]
    assert json.loads(run("version", "--json").stdout)["format"] == "1"


def test_exit_codes(registry, model, tmp_path, htpasswd_registry):
    """Each kind of failure has its number, one line, and a next step."""
    host = registry.host
    (tmp_path / "file").write_text("x")
    cases = [
        (["push", tmp_path / "nowhere", "h.io/a"], 2),
        (["push", model, "h.io/UPPER"], 2),
        (["push", model], 2),
        (["push", model, "h.io/a", "--jobs", "0"], 2),
        (["frobnicate"], 2),
        (["pull", f"{host}/no/such:v1", tmp_path / "o"], 3),
        (["push", model, f"{htpasswd_registry.host}/x:v1"], 4),
        (["pull", "127.0.0.1:9/x:v1", tmp_path / "o"], 5),
        (["pull", f"{host}/a", tmp_path / "file"], 9),
        (["verify", tmp_path / "nowhere"], 2),
    ]
    environment = {**os.environ, "MODELPACK_RETRIES": "1"}
    for arguments, code in cases:
        done = run(*arguments, code=code, env=environment)
        assert done.stdout == ""
        assert done.stderr.startswith("modelpack: ") or "Usage" in done.stderr


def test_errors_as_json(registry, tmp_path):
    """With --json an error is an object too, and the exit code is in it."""
    done = run("pull", f"{registry.host}/no/such:v1", tmp_path / "o", "--json", code=3)
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"], error["retry"]) == ("NotFound", 3, False)


def test_every_error_has_an_exit_code():
    """No error of the tree falls through to the number of a bug."""
    families = [errors.ModelpackError]
    while families:
        kind = families.pop()
        families += kind.__subclasses__()
        if kind is not errors.ModelpackError and kind.__module__ == errors.__name__:
            assert exits.exit_code(kind.__new__(kind)) != exits.BUG, kind
    assert set(exits.MEANINGS) >= {code for _, code in exits._CODES}


def test_conflicts_and_differences_have_their_own_codes(registry, name, model, tmp_path):
    """9 where the user's files are in the way, 6 where bytes differ."""
    reference = f"{registry.host}/{name}:v1"
    run("push", model, reference)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    run("pull", reference, out, code=9)
    run("pull", reference, out, "--overwrite")
    with (out / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"XX")
    done = run("verify", out, code=6)
    assert "chunks differ" in done.stdout
    assert "model-00001" in done.stdout


def test_login_and_logout(htpasswd_registry, name, model, tmp_path):
    """What login keeps, push uses; logout forgets; wrong passwords are refused and not kept."""
    host = htpasswd_registry.host
    run("login", host, "-u", "ann", "--password-stdin", input="wrong\n", code=4)
    run("push", model, f"{host}/{name}:v1", code=4)
    run("login", host, "-u", "ann", "--password-stdin", input="s3cret:word\n")
    config = os.path.join(os.environ["DOCKER_CONFIG"], "config.json")
    assert os.stat(config).st_mode & 0o777 == 0o600
    run("push", model, f"{host}/{name}:v1")
    run("logout", host)
    run("push", model, f"{host}/{name}:v2", code=4)


def test_tls(tls_registry, mtls_registry, name, model, tmp_path):
    """A private authority is named by --ca-file, a client certificate by --client-cert."""
    host = tls_registry.host
    files = tls_registry.extra
    done = run("push", model, f"{host}/{name}:v1", "--ca-file", files["ca"])
    assert "pushed" in done.stdout
    run("pull", f"{host}/{name}:v1", tmp_path / "o", "--insecure")
    assert tree(tmp_path / "o") == tree(model)
    other = mtls_registry.extra
    done = run("push", model, f"{host}/{name}:v1", "--ca-file", other["ca"], code=5)
    assert "--ca-file" in done.stderr
    run(
        "push", model, f"{mtls_registry.host}/{name}:v1", "--ca-file", other["ca"],
        "--client-cert", other["client"], "--client-key", other["client_key"],
    )  # fmt: skip
    run("push", model, f"{mtls_registry.host}/{name}:v1", "--ca-file", other["ca"], code=5)


def test_progress_is_for_terminals(registry, name, model, tmp_path):
    """Bars with rate and time are drawn on a terminal, and nowhere else."""
    reference = f"{registry.host}/{name}:v1"
    assert run("push", model, reference).stderr == ""
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [*MODELPACK, "pull", reference, str(tmp_path / "out")],
            stderr=follower, stdout=subprocess.PIPE, check=True, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.set_blocking(leader, False)
        drawn = os.read(leader, 1 << 20).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert re.search(r"fetching.*MB", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn))
    assert b"pulled" in done.stdout


def test_help_has_examples_and_exit_codes():
    """Every verb shows how it is used."""
    assert "Exit codes" in run("--help").stdout
    for verb in (
        "push",
        "pull",
        "copy",
        "inspect",
        "diff",
        "verify",
        "ls",
        "rm",
        "login",
        "logout",
    ):
        text = run(verb, "--help").stdout
        assert "Examples" in text
        assert f"modelpack {verb}" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    """A completion script for the common shells."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run("--show-completion", shell, env=environment)
    assert "modelpack" in done.stdout.lower()


def test_a_closed_pipe_is_no_error(model):
    """`modelpack inspect … | head` ends quietly."""
    command = " ".join([*MODELPACK, "inspect", "--tensors", str(model)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_names_cannot_write_to_the_terminal(tmp_path):
    """Control characters in names are shown, not sent."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a\x1b[31mred").write_text("x")
    assert "\x1b" not in run("inspect", tmp_path / "m").stdout
