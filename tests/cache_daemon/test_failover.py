"""Stores of the site before the registry: S3 and a layout on a disk, both real."""

import shutil
from pathlib import Path

import pytest

from cache_daemon.fetch.failover import Store, open_store
from modelpack.spec.errors import InputError
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.support.weights import tree


@pytest.fixture
def published(proxy, model, name, session, tmp_path):
    """The same model in a registry and in a layout; its reference and the layout's directory."""
    push(str(model), Reference.parse(f"{proxy.host}/{name}:v1"), session(), PushOptions())
    layout = tmp_path / "layout"
    push(str(model), Reference.parse(f"oci:{layout}:v1"), session(), PushOptions())
    return f"{proxy.host}/{name}:v1", layout


@pytest.fixture
def fetched(daemon, proxy, model):
    """Fetch through a daemon with a store; returns the bytes that came from the registry."""

    def run(reference, *options, env=None):
        one = daemon(f'--registries=["{proxy.host}"]', *options)
        one.start(**(env or {}))
        before = proxy.bytes_sent()
        one.node("prefetch", reference, "--wait")
        assert [tree(path) for path in one.trees()] == [tree(model)]
        return proxy.bytes_sent() - before

    return run


def upload(s3, directory: Path, bucket: str, prefix: str) -> None:
    client = s3.client()
    client.create_bucket(Bucket=bucket)
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(directory)}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    client.close()


def test_a_bucket_is_asked_first(fetched, published, s3):
    """Weights come from it, and from the registry only what says what they are."""
    reference, layout = published
    upload(s3, layout, "models", "llm/layout")
    environment = {**s3.environment, "AWS_ENDPOINT_URL": s3.endpoint}
    assert fetched(reference, '--site-stores=["s3://models/llm/layout"]', env=environment) < 10_000


def test_a_layout_is_asked_first(fetched, published):
    """Also one on a disk that all nodes have mounted."""
    reference, layout = published
    assert fetched(reference, f'--site-stores=["oci:{layout}"]') < 10_000


def test_what_a_store_does_not_have_comes_from_the_registry(fetched, published):
    """Blob by blob."""
    reference, layout = published
    largest = max(layout.rglob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    largest.unlink()
    assert 0.9 * size < fetched(reference, f'--site-stores=["oci:{layout}"]') < 1.1 * size


def test_a_store_that_is_away_costs_nothing_but_itself(fetched, published):
    """A directory that is not there, a bucket that nobody serves."""
    reference, layout = published
    shutil.rmtree(layout)
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    stores = f'--site-stores=["s3://nobody/x", "oci:{layout}"]'
    assert fetched(reference, stores, env=environment) > 10_000_000


def test_wrong_bytes_of_a_store_are_never_shown(fetched, published):
    """A store with damage is left alone: the registry has the rest."""
    reference, layout = published
    largest = max(layout.rglob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    data = bytearray(largest.read_bytes())
    data[2_000_000] ^= 1
    largest.write_bytes(data)
    assert 1_000_000 < fetched(reference, f'--site-stores=["oci:{layout}"]') < 13_000_000


@pytest.mark.parametrize("url", ["s3://", "oci:", "http://x/y", ""])
def test_stores_that_are_none(url):
    """They are named at the start."""
    with pytest.raises(InputError, match="expected s3://bucket/prefix"):
        open_store(url)


def test_a_store_that_failed_is_left_alone_for_a_while():
    """And then asked again."""
    now = [0.0]
    store = Store(None, lambda: now[0])
    assert store.usable
    store.failed()
    assert not store.usable
    now[0] = 31.0
    assert store.usable
