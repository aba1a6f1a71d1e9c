"""The control API over the network: TLS, certificates of clients, the token."""

import json
import signal
import ssl
import subprocess
import sys

import pytest
import trustme
from pydantic import ValidationError

from cache_daemon.config import Settings
from cache_daemon.serve.listen import Tls
from modelpack.spec.errors import InputError, RegistryError, Unauthorized
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.node_address import RemoteAddress
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.test_daemon import Daemon
from tests.support.processes import free_port, give_back
from tests.support.witness import witness

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PEM files: our authority and server, a client of ours, an authority and client of others."""
    directory = tmp_path_factory.mktemp("pem")
    ours, others = trustme.CA(), trustme.CA()
    found = {"token": directory / "token", "wrong": directory / "wrong"}
    found["token"].write_text(f"{TOKEN}\n")
    found["wrong"].write_text(TOKEN[::-1])
    for name, authority in (("ca", ours), ("other_ca", others)):
        found[name] = directory / f"{name}.pem"
        authority.cert_pem.write_to_path(found[name])
    for name, leaf in (
        ("server", ours.issue_cert("127.0.0.1")),
        ("client", ours.issue_cert("operator@example.com")),
        ("stranger", others.issue_cert("operator@example.com")),
    ):
        found[name], found[f"{name}_key"] = directory / f"{name}.pem", directory / f"{name}.key"
        leaf.private_key_pem.write_to_path(found[f"{name}_key"])
        found[name].write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    return found


@pytest.fixture
def listening(tmp_path):
    """Start daemons that listen; returns host and port."""
    daemons, ports = [], []

    def start(*options):
        ports.append(free_port())
        (tmp_path / str(ports[-1])).mkdir()
        listen = f"127.0.0.1:{ports[-1]}"
        daemons.append(Daemon(tmp_path / str(ports[-1]), f"--listen={listen}", *options).start())
        return listen

    yield start
    for one in daemons:
        code, said = one.stop(signal.SIGTERM)
        assert code == 0
        assert "Traceback" not in said
    give_back(*ports)


def tls(files, *more):
    return [f"--tls-cert={files['server']}", f"--tls-key={files['server_key']}", *more]


def node(listen, scheme="https", **more):
    return Node(address=RemoteAddress(url=f"{scheme}://{listen}", **more))


def test_tls_and_a_token(listening, files, capfd):
    """Who trusts the authority and has the token is answered; a wrong or missing one is not."""
    listen = listening(*tls(files, f"--token-file={files['token']}"))
    assert node(listen, ca_file=files["ca"], token_file=files["token"]).get("/v1/models") == []
    assert node(listen, ca_file=files["ca"]).get("/v1/live")
    for given in (None, files["wrong"]):
        with pytest.raises(Unauthorized, match="token") as caught:
            node(listen, ca_file=files["ca"], token_file=given).get("/v1/models")
        assert "--token-file" in caught.value.hint
        assert TOKEN[::-1] not in str(caught.value)
    with pytest.raises(RegistryError, match="not trusted") as caught:
        node(listen, ca_file=files["other_ca"], token_file=files["token"]).get("/v1/models")
    assert "--ca-file" in caught.value.hint
    with pytest.raises(RegistryError):
        node(listen, scheme="http").get("/v1/live")


def test_certificates_of_clients(listening, files):
    """With --client-ca nobody connects without one of it, also not for liveness; no token then."""
    listen = listening(*tls(files, f"--client-ca={files['ca']}"))
    known = {"client_cert": files["client"], "client_key": files["client_key"]}
    strange = {"client_cert": files["stranger"], "client_key": files["stranger_key"]}
    assert node(listen, ca_file=files["ca"], **known).get("/v1/models") == []
    for refused in ({}, strange):
        for path in ("/v1/live", "/v1/models"):
            with pytest.raises(RegistryError):
                node(listen, ca_file=files["ca"], **refused).get(path)
    assert node(listen, ca_file=files["ca"], **known).get("/v1/models") == []


def test_both(listening, files):
    """A certificate does not spare the token where there is one."""
    both = (f"--client-ca={files['ca']}", f"--token-file={files['token']}")
    listen = listening(*tls(files, *both))
    known = {"client_cert": files["client"], "client_key": files["client_key"]}
    with pytest.raises(Unauthorized):
        node(listen, ca_file=files["ca"], **known).get("/v1/models")
    with pytest.raises(RegistryError):
        node(listen, ca_file=files["ca"], token_file=files["token"]).get("/v1/models")
    known["token_file"] = files["token"]
    assert node(listen, ca_file=files["ca"], **known).get("/v1/models") == []


def test_an_operator_far_away(listening, files, registry, model, name, session):
    """`modelpack node --url` does what it does on the node itself."""
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), PushOptions())
    listen = listening(
        *tls(files, f"--token-file={files['token']}", f"--client-ca={files['ca']}"),
        f'--registries=["{registry.host}"]', "--connections-per-source=1",
        "--bytes-per-second=500000000", "--prefetch-rate-share=1",
    )  # fmt: skip

    def run(*arguments, token="token"):
        return subprocess.run(
            [sys.executable, "-m", "modelpack.cli.entry", "node", *arguments,
             f"--url=https://{listen}/", f"--ca-file={files['ca']}",
             f"--token-file={files[token]}", f"--client-cert={files['client']}",
             f"--client-key={files['client_key']}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run("prefetch", reference, "--wait", "--json")
    assert json.loads(done.stdout)["state"] == "ready"
    assert reference in run("ls").stdout
    refused = run("status", token="wrong")
    assert refused.returncode == 4
    assert "token" in refused.stderr


def test_tls_where_there_is_none(listening, files):
    """A daemon on loopback may do without; who expects TLS is told."""
    listen = listening(f"--token-file={files['token']}")
    assert node(listen, scheme="http", token_file=files["token"]).get("/v1/models") == []
    with pytest.raises(RegistryError, match="TLS") as caught:
        node(listen, ca_file=files["ca"]).get("/v1/live")
    assert "speak no TLS" in caught.value.hint


def test_the_token_is_not_sent_in_the_clear(files, monkeypatch):
    """Except to this machine; nothing is connected to."""
    with pytest.raises(InputError, match="in the clear"):
        node("node-7.example:9000", scheme="http", token_file=files["token"]).get("/v1/models")
    with witness() as other:
        for more in ({"ca_file": files["ca"]}, {"client_cert": files["client"]}):
            with pytest.raises(InputError, match="need https"):
                node(other.host, scheme="http", **more).get("/v1/models")
        with pytest.raises(InputError, match="cannot be loaded"):
            node(other.host, client_cert=files["client"], client_key=files["server_key"]).get("/")
        assert other.connections == 0


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "https://", "https://a/b", "https://a:b", "https://u@a", "a:1", "https://a?b"],
)
def test_what_is_no_address_of_a_node(url):
    """It is said so before anything is asked."""
    with pytest.raises(InputError, match="https://HOST:PORT"):
        Node(address=RemoteAddress(url=url)).get("/v1/live")


def test_options_about_another_node_need_it(files):
    """They would be ignored otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "modelpack.cli.entry", "node", "status", f"--ca-file={files['ca']}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--url" in done.stderr


def test_old_tls_is_refused(files):
    """TLS 1.2 is the least."""
    context = Tls(files["server"], files["server_key"]).context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    context = Tls(files["server"], files["server_key"], files["ca"]).context()
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_files_that_are_no_certificates(files, tmp_path):
    """One line names the file."""
    (tmp_path / "x").write_text("no certificate")
    for wrong in (
        Tls(tmp_path / "x", files["server_key"]), Tls(tmp_path / "none", files["server_key"]),
        Tls(files["server"], files["client_key"]), Tls(files["server"], files["server_key"], tmp_path / "x"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="cannot be used for TLS") as caught:
            wrong.context()
        assert "\n" not in str(caught.value)


PAIR = {"tls_cert": "c", "tls_key": "k"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"listen": "0.0.0.0:1", "token_file": "t"}, "insecure_listen allows it"),
        ({"listen": "[::]:1", "token_file": "t"}, "insecure_listen allows it"),
        ({"listen": "node:1", "token_file": "t"}, "insecure_listen allows it"),
        ({"listen": "0.0.0.0:1"}, "needs token_file or client_ca"),
        ({"listen": "127.0.0.1:1"}, "needs token_file or client_ca"),
        ({"listen": "0.0.0.0:1", **PAIR}, "needs token_file or client_ca"),
        ({"listen": "0.0.0.0:1", "client_ca": "a"}, "client_ca needs"),
        ({"listen": "0.0.0.0:1", "tls_cert": "c", "token_file": "t"}, "need each other"),
        ({"listen": "0.0.0.0:1", "tls_key": "k", "token_file": "t"}, "need each other"),
        ({"listen": "0.0.0.0:1", **PAIR, "token_file": "t", "insecure_listen": True}, "contradict"),
        (PAIR, "is off"),
        ({"insecure_listen": True}, "is off"),
        ({"listen": "nowhere", "token_file": "t"}, "expected HOST:PORT"),
    ],
)
def test_settings_that_contradict_each_other(given, said):
    """They are refused with what is missing."""
    with pytest.raises(ValidationError, match=said) as caught:
        Settings(**given)
    assert len(caught.value.errors()) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"listen": "0.0.0.0:1", "token_file": "t", "insecure_listen": True},
        {"listen": "0.0.0.0:1", "token_file": "t", **PAIR},
        {"listen": "0.0.0.0:1", "client_ca": "a", **PAIR},
        {"listen": "[::1]:1", "token_file": "t"},
        {"listen": "localhost:1", "token_file": "t"},
        {},
    ],
)
def test_settings_that_make_sense(given):
    """Each says who is let in, and nobody reads along."""
    Settings(**given)
