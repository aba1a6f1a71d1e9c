"""Models in a real S3 server."""

import boto3
import pytest

from modelpack.spec.errors import BadSource, Denied, InputError, NotFound
from modelpack.spec.reference import Reference
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.support.weights import tree


@pytest.fixture
def bucket(s3, monkeypatch, model, name):
    """A bucket with the model below a prefix."""
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("s3")
    bucket = f"b-{name.rpartition('-')[2]}"
    client.create_bucket(Bucket=bucket)
    for path in model.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"models/llama/{path.relative_to(model)}")
    yield client, bucket
    client.close()


def test_a_bucket_gives_the_digest_of_the_directory(bucket, model, tmp_path, session):
    """s3://bucket/prefix and the same files on disk are the same artifact."""
    _, name = bucket
    there = Reference.parse(f"oci:{tmp_path / 'one'}:v1")
    here = Reference.parse(f"oci:{tmp_path / 'two'}:v1")
    from_bucket = push(f"s3://{name}/models/llama", there, session(), PushOptions())
    from_disk = push(str(model), here, session(), PushOptions())
    assert from_bucket.digest == from_disk.digest
    pull(there, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)
    chosen = push(f"s3://{name}/models/llama/", here, session(), PushOptions(include=["*.json"]))
    assert chosen.files == 3


def test_objects_that_change_are_noticed(bucket, tmp_path):
    """An object that is replaced between listing and reading is not packed."""
    client, name = bucket
    from modelpack.s3.bucket import Bucket

    source = Bucket(f"s3://{name}/models/llama")
    file = source.files()[0]
    client.put_object(Bucket=name, Key=file.location, Body=b"other")
    with pytest.raises(BadSource, match="changed"), source.stream(file, 0) as stream:
        stream.read(10)
    with pytest.raises(BadSource, match="changed"):
        source.check(file)


def test_what_is_wrong_is_said(bucket, tmp_path, session, monkeypatch):
    """Missing buckets, empty prefixes, wrong keys and wrong addresses are told apart."""
    _, name = bucket
    target = Reference.parse(f"oci:{tmp_path / 'x'}:v1")
    with pytest.raises(NotFound, match="no-such-bucket"):
        push("s3://no-such-bucket/x", target, session(), PushOptions())
    with pytest.raises(BadSource, match="no objects"):
        push(f"s3://{name}/empty", target, session(), PushOptions())
    with pytest.raises(InputError):
        push("s3://", target, session(), PushOptions())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Denied):
        push(f"s3://{name}/models/llama", target, session(), PushOptions())
