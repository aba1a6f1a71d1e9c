"""Which proxy the environment names for a request."""

import pytest

from modelpack.oci.proxies import Proxy, proxy_for
from modelpack.spec.errors import InputError

NO = "intern.example,.cluster.local,*.wild.example,10.0.0.0/8,192.168.7.7,fd00::/8,port.example:8443, spaced.example"


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "plain.example:8080")
    monkeypatch.setenv("NO_PROXY", NO)


@pytest.mark.parametrize(
    ("url", "direct"),
    [("https://registry.example/v2/", False), ("https://intern.example/", True),
     ("https://a.intern.example/", True), ("https://notintern.example/", False),
     ("https://r.cluster.local:5000/", True), ("https://a.wild.example/", True),
     ("https://10.20.30.40:5000/", True), ("https://11.0.0.1/", False),
     ("https://192.168.7.7/", True), ("https://192.168.7.8/", False), ("https://[fd00::1]/", True),
     ("https://[fe80::1]/", False), ("https://port.example:8443/", True), ("https://port.example/", False),
     ("https://spaced.example/", True), ("https://INTERN.example/", True),
     ("http://localhost:5000/", True), ("http://127.0.0.1:5000/", True), ("http://[::1]:5000/", True)],
)  # fmt: skip
def test_no_proxy(environment, url, direct):
    """Hosts, domains, addresses, networks and ports in NO_PROXY, and loopback, are direct."""
    assert (proxy_for(url) is None) == direct


def test_each_scheme_has_its_proxy(environment):
    """The proxy depends on the scheme; a missing scheme means http."""
    assert proxy_for("https://r.example/") == Proxy("http://proxy.example:3128")
    assert proxy_for("http://r.example/") == Proxy("http://plain.example:8080")


def test_no_environment_no_proxy():
    """Without variables every connection is direct."""
    assert proxy_for("https://r.example/") is None


def test_everything_may_be_direct(environment, monkeypatch):
    """NO_PROXY=* switches proxies off."""
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_for("https://r.example/") is None


def test_credentials_are_taken_out_of_the_address(monkeypatch):
    """User and password are sent to the proxy, and are not part of what is shown."""
    monkeypatch.setenv("https_proxy", "http://ann:p%40ss@proxy.example:3128")
    proxy = proxy_for("https://r.example/")
    assert proxy == Proxy("http://proxy.example:3128", "ann:p@ss")
    assert "p@ss" not in repr(proxy)


@pytest.mark.parametrize("text", ["socks5://proxy:1080", "http://", "http://[::1"])
def test_unusable_proxies(monkeypatch, text):
    """A proxy that cannot be used is named by its variable, and not by its value."""
    monkeypatch.setenv("HTTPS_PROXY", text)
    with pytest.raises(InputError) as caught:
        proxy_for("https://r.example/")
    assert "HTTPS_PROXY" in caught.value.hint
