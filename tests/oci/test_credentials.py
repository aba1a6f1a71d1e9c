"""Credentials of docker, podman and their helpers: found, kept, forgotten."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from modelpack.oci.credentials import Credential, DockerCredentials, docker_config
from modelpack.spec.errors import DiskError, InputError

HOST = "registry.example:5000"
HELPER = """#!/usr/bin/env python3
import json, os, sys
path = os.environ["HELPER_FILE"]
kept = json.load(open(path)) if os.path.exists(path) else {}
verb, text = sys.argv[1], sys.stdin.read()
if verb == "store":
    entry = json.loads(text)
    kept[entry["ServerURL"]] = entry
elif text not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "get":
    print(json.dumps(kept[text]))
else:
    del kept[text]
json.dump(kept, open(path, "w"))
"""


def auth(username, password):
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write(path, **config):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))


def get(registry=HOST, repository="org/model"):
    return DockerCredentials().get(registry, repository)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Install a docker-credential-NAME with a text of its own."""

    def install(name, text):
        path = tmp_path / "bin" / f"docker-credential-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return install


@pytest.fixture
def helper(program, tmp_path, monkeypatch):
    """A helper called "test"; returns the file it keeps everything in."""
    monkeypatch.setenv("HELPER_FILE", str(tmp_path / "kept.json"))
    program("test", HELPER)
    return tmp_path / "kept.json"


def test_without_files_everybody_is_anonymous():
    """No configuration is no error."""
    assert get() is None


ENTRIES = {
    "base64": (auth("ann", "s3c:ret"), Credential("ann", "s3c:ret")),
    "fields": ({"username": "ann", "password": "pw"}, Credential("ann", "pw")),
    "identity token": ({**auth("ann", ""), "identitytoken": "tok"}, Credential(identity_token="tok")),
    "padded by docker": ({"auth": base64.b64encode(b"ann:pw\0\0").decode()}, Credential("ann", "pw")),
    "empty": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTRIES)
def test_entries(kind):
    """All forms that docker and podman write are understood."""
    entry, expected = ENTRIES[kind]
    write(docker_config(), auths={HOST: entry})
    assert get() == expected


@pytest.mark.parametrize(
    "key", [f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2/", HOST]
)
def test_keys(key):
    """Old keys with scheme and version mean the host."""
    write(docker_config(), auths={key: auth("ann", "pw")})
    assert get() == Credential("ann", "pw")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub(key):
    """Docker Hub is found under each of its names."""
    write(docker_config(), auths={key: auth("ann", "pw")})
    assert get("docker.io", "library/x") == Credential("ann", "pw")


def test_the_longest_prefix_wins():
    """An entry for a repository comes before that of its organisation, and that of the host."""
    keys = {HOST: "host", f"{HOST}/org": "org", f"{HOST}/org/model": "model"}
    write(docker_config(), auths={key: auth(user, "x") for key, user in keys.items()})
    assert get(repository="org/model").username == "model"
    assert get(repository="org/other").username == "org"
    assert get(repository="organ/model").username == "host"


def test_another_namespace_is_none_of_ours():
    """An entry for one organisation is not used for another, nor for the whole registry."""
    write(docker_config(), auths={f"{HOST}/org": auth("ann", "pw")})
    assert get(repository="other/model") is None
    assert get(repository="") is None


def test_the_order_of_files(monkeypatch, tmp_path):
    """$REGISTRY_AUTH_FILE, then docker's, then containers' files."""
    places = [
        Path.home() / ".config/containers/auth.json",
        Path(os.environ["XDG_RUNTIME_DIR"]) / "containers/auth.json",
        docker_config(),
        tmp_path / "explicit.json",
    ]
    for number, path in enumerate(places):
        if number == 3:
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
        write(path, auths={HOST: auth(f"user{number}", "x")})
        assert get().username == f"user{number}"


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": [1]}', "\xff", "[" * 100_000])
def test_a_damaged_file_is_named(text):
    """A file that is not what it should be is not taken for none."""
    docker_config().parent.mkdir(parents=True)
    docker_config().write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json"):
        get()


@pytest.mark.parametrize("text", ["!!!", base64.b64encode(b"no colon").decode()])
def test_a_damaged_entry_is_named_but_not_shown(text):
    """An entry that cannot be decoded leads to a new login; its text stays secret."""
    write(docker_config(), auths={HOST: {"auth": text}})
    with pytest.raises(InputError) as caught:
        get()
    assert caught.value.hint == f"modelpack login {HOST}"
    assert text not in str(caught.value)


def test_no_entries_at_all():
    """`"auths": null` is what Go writes of nothing."""
    write(docker_config(), auths=None)
    assert get() is None
    DockerCredentials().store(HOST, Credential("ann", "pw"))
    assert get() == Credential("ann", "pw")


@pytest.mark.parametrize("config", [{"credsStore": "test"}, {"credHelpers": {HOST: "test"}}])
def test_helpers(config, helper):
    """A helper for all registries, or for one, is stored to, asked and cleared."""
    write(docker_config(), **config)
    credentials = DockerCredentials()
    assert get() is None
    assert credentials.store(HOST, Credential("ann", "pw")) == "docker-credential-test"
    assert get() == Credential("ann", "pw")
    assert "pw" not in docker_config().read_text()
    assert credentials.erase(HOST)
    assert get() is None
    assert not credentials.erase(HOST)


def test_a_token_from_a_helper(helper):
    """The user <token> means that the secret is an identity token."""
    write(docker_config(), credsStore="test")
    DockerCredentials().store(HOST, Credential(identity_token="tok"))
    assert json.loads(helper.read_text())[HOST]["Username"] == "<token>"
    assert get() == Credential(identity_token="tok")


def test_a_helper_comes_before_a_stale_entry(helper):
    """What a helper keeps is newer than an entry that an older docker has left; what it does not
    know is looked up in the file."""
    write(docker_config(), credsStore="test", auths={HOST: auth("stale", "x")})
    assert get().username == "stale"
    DockerCredentials().store(HOST, Credential("fresh", "x"))
    assert get().username == "fresh"


def test_one_registry_without_the_helper(helper):
    """An empty name in credHelpers takes a registry out of credsStore."""
    write(docker_config(), credsStore="test", credHelpers={HOST: ""})
    DockerCredentials().store(HOST, Credential("ann", "pw"))
    assert not helper.exists()
    assert get() == Credential("ann", "pw")


BROKEN = {
    "exits": ('#!/bin/sh\necho "cannot \x1b[31munlock" >&2\nexit 3\n', r"cannot \?\[31munlock"),
    "is silent": ("#!/bin/sh\nexit 3\n", "exit code 3"),
    "talks nonsense": ("#!/bin/sh\necho hello\n", "its answer"),
    "lacks the secret": ('#!/bin/sh\necho \'{"Username": "a"}\'\n', "its answer"),
    "is no program": ("\x7fELF", "cannot be run"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_helpers(how, program):
    """A helper that fails is named, with what it says, made harmless."""
    text, message = BROKEN[how]
    program("broken", text)
    write(docker_config(), credsStore="broken")
    with pytest.raises(InputError, match=message) as caught:
        get()
    assert "docker-credential-broken" in str(caught.value)


def test_a_missing_helper():
    """A helper that is not installed is a clear error, and not anonymous access."""
    write(docker_config(), credsStore="nowhere")
    with pytest.raises(InputError, match="docker-credential-nowhere") as caught:
        get()
    assert "install it" in caught.value.hint


def test_a_helper_that_hangs(program, monkeypatch):
    """A helper that waits for somebody is not waited for."""
    monkeypatch.setattr("modelpack.oci.credential_helper._SECONDS", 0.05)
    program("slow", "#!/bin/sh\nexec sleep 60\n")
    write(docker_config(), credsStore="slow")
    with pytest.raises(InputError, match="no answer"):
        get()


def test_the_file_is_kept_private_and_whole():
    """A login changes one entry: others and other settings stay, and only the owner may read it."""
    write(docker_config(), auths={"other.example": auth("bob", "x")}, proxies={"default": {}})
    credentials = DockerCredentials()
    assert credentials.store(HOST, Credential("ann", "pw")) == str(docker_config())
    config = json.loads(docker_config().read_text())
    assert config["auths"].keys() == {"other.example", HOST}
    assert config["proxies"] == {"default": {}}
    assert stat.S_IMODE(docker_config().stat().st_mode) == 0o600
    assert credentials.erase(HOST)
    assert json.loads(docker_config().read_text())["auths"].keys() == {"other.example"}
    assert os.listdir(docker_config().parent) == ["config.json"]


def test_logout_forgets_old_keys_but_not_namespaces():
    """All keys of the registry go; entries for single organisations were not made by a login."""
    keys = [HOST, f"https://{HOST}/v1/", f"{HOST}/org"]
    write(docker_config(), auths={key: auth("ann", "x") for key in keys})
    assert DockerCredentials().erase(HOST)
    assert json.loads(docker_config().read_text())["auths"].keys() == {f"{HOST}/org"}


def test_a_linked_file_stays_a_link(tmp_path):
    """A config.json that is a link, into a synchronised folder say, is written where it points."""
    real = tmp_path / "elsewhere" / "config.json"
    write(real, auths={})
    docker_config().parent.mkdir(parents=True)
    docker_config().symlink_to(real)
    DockerCredentials().store(HOST, Credential("ann", "pw"))
    assert docker_config().is_symlink()
    assert HOST in json.loads(real.read_text())["auths"]


def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    """A configuration directory that cannot be made is an error of the disk, with a way out."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "file" / "docker"))
    with pytest.raises(DiskError) as caught:
        DockerCredentials().store(HOST, Credential("ann", "pw"))
    assert "DOCKER_CONFIG" in caught.value.hint


def test_secrets_are_not_printed():
    """A credential in a traceback or a log does not tell."""
    assert "pw" not in repr(Credential("ann", "pw"))
