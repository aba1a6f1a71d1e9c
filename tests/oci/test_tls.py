"""TLS against a real registry: authorities, client certificates, and what goes wrong."""

import shutil
from pathlib import Path

import pytest

from modelpack.spec.errors import InputError, RegistryError


def test_an_authority_by_file(tls_registry, remote):
    """A registry with a certificate of its own authority is trusted with that authority."""
    remote(tls_registry.host, ca_file=tls_registry.extra["ca"]).ping()


def test_a_stranger_is_not_trusted(tls_registry, remote, tmp_path):
    """Without its authority the registry is refused for good, with what to do."""
    import trustme

    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(RegistryError, match="not trusted") as caught:
        remote(tls_registry.host, ca_file=other).ping()
    assert caught.value.permanent
    assert "--ca-file" in caught.value.hint


def test_insecure_is_tls_without_verification(tls_registry, remote):
    """With `insecure` any certificate will do."""
    remote(tls_registry.host, insecure=True).ping()


def test_a_client_certificate(mtls_registry, remote):
    """A registry that wants a client certificate gets it."""
    files = mtls_registry.extra
    remote(
        mtls_registry.host,
        ca_file=files["ca"],
        client_cert=files["client"],
        client_key=files["client_key"],
    ).ping()


def test_a_missing_client_certificate(mtls_registry, remote):
    """Without it the registry is not reached."""
    with pytest.raises(RegistryError):
        remote(mtls_registry.host, ca_file=mtls_registry.extra["ca"]).ping()


def test_a_client_certificate_is_for_one_host(mtls_registry, remote):
    """Another host, one that the registry redirects to say, is not shown who we are."""
    files = mtls_registry.extra
    repository = remote(
        "registry.example",
        ca_file=files["ca"],
        client_cert=files["client"],
        client_key=files["client_key"],
    )
    with pytest.raises(RegistryError):
        repository._exchange.transport.request("GET", f"https://{mtls_registry.host}/v2/", {})


def test_certificates_by_convention(mtls_registry, remote):
    """certs.d/HOST has the authority (*.crt) and the client's certificate (*.cert, *.key)."""
    directory = Path.home() / ".config/containers/certs.d" / mtls_registry.host
    directory.mkdir(parents=True)
    files = mtls_registry.extra
    for source, name in (("ca", "ca.crt"), ("client", "me.cert"), ("client_key", "me.key")):
        shutil.copy(files[source], directory / name)
    repository = remote("registry.example")
    answer = repository._exchange.transport.request("GET", f"https://{mtls_registry.host}/v2/", {})
    assert answer.status == 200
    answer.close()


def test_a_file_that_is_no_certificate(tls_registry, remote, tmp_path):
    """A certificate file that cannot be read is the caller's mistake."""
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    with pytest.raises(InputError, match="certificates cannot be loaded"):
        remote(tls_registry.host, ca_file=broken).ping()


def test_tls_to_a_registry_without(registry, remote):
    """A registry that does not speak TLS is recognised, and the option is named."""
    with pytest.raises(RegistryError) as caught:
        remote(registry.host, insecure=True).ping()
    assert "--plain-http" in caught.value.hint
