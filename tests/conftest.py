"""Fixtures: every test is alone with its home directory; servers are shared and real."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from modelpack.oci.retry import RetryPolicy
from modelpack.oci.settings import ConnectSettings
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache
from modelpack.verbs.session import Session
from tests.support import servers, tokens, weights
from tests.support.faults import fault_proxy
from tests.support.processes import LogMark
from tests.support.s3 import s3_server

settings.register_profile("ci", deadline=None, max_examples=60)
settings.load_profile("ci")


_LOGS = pytest.StashKey[LogMark]()
# Settings of the person who runs the tests that would change what a client or server does.
_FOREIGN = ("AWS_", "HF_", "HUGGINGFACE_", "MODELPACK_", "REGISTRY_", "DOCKER_", "CONTAINERS_")
_PRIVATE = ("SOURCE_DATE_EPOCH", "NETRC", "STORAGE_DRIVER", "BUILDAH_ISOLATION")


def pytest_runtest_setup(item):
    """Remember where the servers' logs end before a test."""
    item.stash[_LOGS] = LogMark.now()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show what the servers said during a test that failed."""
    report = yield
    if report.failed and (mark := item.stash.get(_LOGS, None)):
        report.sections += [(f"log of {name}", text) for name, text in mark.since()]
    return report


@pytest.fixture(scope="session", autouse=True)
def _nobody():
    """Keep the user's proxies, credentials and settings out of the servers and the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for key in list(os.environ):
            if (
                key.lower().endswith("_proxy")
                or key in _PRIVATE
                or (key.startswith(_FOREIGN) and key != "MODELPACK_KILLS")
            ):
                patch.delenv(key)
        yield


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    """Give every test a home of its own, with nothing in it."""
    home = tmp_path_factory.mktemp("home")
    for key, value in {
        "HOME": home,
        "XDG_CACHE_HOME": home / "cache",
        "XDG_CONFIG_HOME": home / "config",
        "XDG_DATA_HOME": home / "data",
        "XDG_RUNTIME_DIR": home / "run",
        "DOCKER_CONFIG": home / "docker",
    }.items():
        monkeypatch.setenv(key, str(value))


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    with servers.docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def own_registry(tmp_path):
    """A registry whose storage the test may damage."""
    with servers.docker_registry(tmp_path / "own-registry") as running:
        yield running


@pytest.fixture(scope="session")
def htpasswd_registry(tmp_path_factory):
    with servers.htpasswd_registry(tmp_path_factory.mktemp("htpasswd")) as running:
        yield running


@pytest.fixture(scope="session")
def token_registry(tmp_path_factory):
    with tokens.token_registry(tmp_path_factory.mktemp("token")) as running:
        yield running


@pytest.fixture(scope="session")
def tls_registry(tmp_path_factory):
    with servers.tls_registry(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="session")
def mtls_registry(tmp_path_factory):
    with servers.tls_registry(tmp_path_factory.mktemp("mtls"), client_certificates=True) as running:
        yield running


@pytest.fixture(scope="session")
def crane_registry(tmp_path_factory):
    with servers.crane_registry(tmp_path_factory.mktemp("crane")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def proxy(registry):
    """A proxy before the shared registry that can be told to misbehave."""
    with fault_proxy(registry.host) as running:
        yield running


@pytest.fixture
def name(request):
    """A repository of the test's own."""
    cleaned = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    return f"t/{cleaned.strip('-')[:80].strip('-')}-{os.urandom(3).hex()}"


@pytest.fixture(scope="session")
def _model(tmp_path_factory) -> Path:
    return weights.make_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def model(_model, tmp_path) -> Path:
    """A small model; a copy, so that it may be changed."""
    return Path(shutil.copytree(_model, tmp_path / "model"))


def fast(**changes) -> ConnectSettings:
    """Settings that do not wait: retries without pauses, short stalls."""
    options = {"retry": RetryPolicy(sleep=lambda seconds: None), "stall_seconds": 2.0, **changes}
    return ConnectSettings(**options)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Make sessions; all of a test share one memory."""
    for module in ("engine", "blob"):
        monkeypatch.setattr(f"modelpack.transfer.{module}.pause", lambda error, failures: 0)
    database = Database(tmp_path / "state.sqlite")

    def make(**changes) -> Session:
        jobs = changes.pop("jobs", 3)
        return Session(fast(**changes), database, DigestCache(database), jobs=jobs)

    yield make
    database.close()
