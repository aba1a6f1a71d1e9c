"""Registries that are reached through a proxy."""

import pytest

from modelpack.spec.errors import RegistryError, Unavailable
from tests.oci.forward import forward_proxy


def test_plain_http(registry, remote, monkeypatch):
    """HTTP_PROXY is asked with the whole address."""
    with forward_proxy(registry.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        remote("registry.example", plain_http=True).ping()
    assert proxy.asked == ["GET http://registry.example/v2/"]


def test_tls_is_tunnelled(tls_registry, remote, monkeypatch):
    """HTTPS_PROXY is asked for a tunnel; the registry's certificate is verified through it."""
    port = tls_registry.host.partition(":")[2]
    with forward_proxy(tls_registry.host) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with pytest.raises(RegistryError, match="not trusted: Hostname mismatch") as caught:
            remote(f"registry.example:{port}", ca_file=tls_registry.extra["ca"]).ping()
        assert caught.value.hint == "use the name that the certificate is for"
        remote(f"registry.example:{port}", insecure=True).ping()
    assert set(proxy.asked) == {f"CONNECT registry.example:{port}"}


def test_a_proxy_with_a_login(tls_registry, remote, monkeypatch):
    """User and password of the proxy's address are sent to the proxy."""
    with forward_proxy(tls_registry.host, "ann:p@ss") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:p%40ss@{proxy.host}")
        remote("registry.example", insecure=True).ping()
    assert proxy.asked == ["CONNECT registry.example:443"]


@pytest.mark.parametrize("plain", [True, False])
def test_a_wrong_login(tls_registry, registry, remote, monkeypatch, plain):
    """A proxy that refuses the login is named as the one who does, once, without the secret."""
    with forward_proxy(registry.host if plain else tls_registry.host, "ann:other") as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://ann:s3cret@{proxy.host}")
        options = {"plain_http": True} if plain else {"insecure": True}
        with pytest.raises(RegistryError) as caught:
            remote("registry.example", **options).ping()
    assert "user:password@host" in caught.value.hint
    assert "s3cret" not in str(caught.value)
    assert len(proxy.asked) == 1


def test_a_proxy_that_is_down(remote, monkeypatch):
    """A proxy that cannot be reached is a trouble that may pass."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        remote("registry.example", plain_http=True).ping()
    assert "proxy" in caught.value.hint


def test_loopback_never_goes_through_a_proxy(registry, remote, monkeypatch):
    """A registry on this machine is reached directly, whatever the environment says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    remote(registry.host).ping()
