# Runs in a bucket, by the real command: the same bytes as in a folder, whatever is killed, one run at a time.
from __future__ import annotations

import hashlib
import json
import logging
import random

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.helpers import MODEL, errors, make_photos, tree

URL = "s3://bucket/run"

KEYS = {"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "not-to-be-shown", "AWS_DEFAULT_REGION": "us-east-1"}

# Beside the outputs.
KEPT = {"manifest.jsonl", "summary.json"}


class Bucket:
    """A bucket on this machine, and what the commands need to find it."""

    def __init__(self, endpoint: str, temporary) -> None:
        names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
        self._client = boto3.client("s3", endpoint_url=endpoint, **dict(zip(names, KEYS.values(), strict=True)))
        self._client.create_bucket(Bucket="bucket")
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": endpoint, "TMPDIR": str(temporary)}

    def read(self, name: str) -> bytes:
        return self._client.get_object(Bucket="bucket", Key=f"run/{name}")["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket="bucket", Key=f"run/{name}", Body=data)

    def names(self) -> set[str]:
        found = self._client.list_objects_v2(Bucket="bucket", Prefix="run/").get("Contents", ())
        return {each["Key"].removeprefix("run/") for each in found}

    def remove(self, *names: str) -> None:
        for name in names or self.names():
            self._client.delete_object(Bucket="bucket", Key=f"run/{name}")

    def tree(self) -> dict[str, str]:
        return {name: hashlib.sha256(self.read(name)).hexdigest() for name in sorted(self.names())}

    def lines(self) -> list[dict]:
        parts = sorted(name for name in self.names() if name.startswith("manifest.parts/"))
        texts = [self.read(name) for name in ("manifest.jsonl", *parts)]
        return [json.loads(line) for text in texts for line in text.splitlines()]


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, tmp_path):
    (tmp_path / "temporary").mkdir()
    made = Bucket(server, tmp_path / "temporary")
    yield made
    made.remove()


@pytest.fixture
def run(forge, bucket, tmp_path):
    """Extract ten photos to the bucket."""
    photos = make_photos(tmp_path / "photos", 10)

    def extract(*more, output=URL, **request):
        request = {"environment": bucket.environment, **request}
        return forge(tmp_path, "extract", photos, *MODEL, "--output", output, *more, **request)

    return extract


@pytest.mark.parametrize("more", [(), ("--embedding", "--format", "parquet")], ids=["npz", "parquet"])
def test_the_objects_are_the_files_of_a_folder(run, forge, bucket, tmp_path, more):
    assert run(*more, output="out")["status"] == 0
    done = run(*more)
    assert done["status"] == 0
    assert "s3://bucket/run/" in done["stdout"]
    assert "not kept apart" not in done["stderr"]
    there, here = bucket.tree(), tree(tmp_path / "out")
    assert there.keys() == here.keys()
    assert {name for name in here if there[name] != here[name]} == {"summary.json"}  # which has the time that it took
    assert not list((tmp_path / "temporary").glob("featx-*/*"))
    assert "nothing to compute" in run(*more)["stdout"]
    assert bucket.tree() == there
    checked = forge(tmp_path, "verify", URL, "--json", environment=bucket.environment)
    assert checked["status"] == 0
    assert json.loads(checked["stdout"])["checked"] == 10


def test_kills_at_every_request(run, bucket, tmp_path, request):
    assert run(output="out")["status"] == 0
    expected = tree(tmp_path / "out")
    counter = tmp_path / "counter"
    assert run(fault={"name": "store", "number": 0, "counter": str(counter)})["status"] == 0
    moments = range(1, len(counter.read_text().split()) + 1)
    assert len(moments) > 15
    for number in moments if request.config.getoption("--large") else sorted(random.Random(3).sample(moments, 3)):
        bucket.remove()
        recorded: list[dict] = []
        for _ in range(2):
            assert run(fault={"name": "store", "number": number})["status"] in (-9, 0)
            lines = bucket.lines() if "manifest.jsonl" in bucket.names() else []
            assert lines[: len(recorded)] == recorded  # nothing that was recorded is lost
            objects, recorded = bucket.tree(), lines
            assert all(objects[line["output"]] == line["sha256"] for line in lines)
            assert {name: expected[name] for name in objects if name.endswith(".npz")}.items() <= objects.items()
        done = run()
        assert done["status"] == 0, done
        assert len(recorded) in (0, 10) or "done before" in done["stderr"]
        after = bucket.tree()
        assert after.keys() == expected.keys()
        assert {name for name in after if after[name] != expected[name]} <= KEPT
        assert sorted(line["key"] for line in bucket.lines()) == [f"photos/{place}.jpg" for place in range(10)]


def test_a_lease_keeps_another_run_out_until_it_is_broken(run, bucket):
    lease = {"host": "elsewhere", "pid": 7, "token": "x", "time": "2026-01-01T00:00:00+00:00"}
    bucket.write(".lease", json.dumps(lease).encode())
    refused = run()
    assert refused["status"] == 11
    assert "process 7 on elsewhere" in refused["stderr"]
    assert "remove s3://bucket/run/.lease if you are sure that it has ended" in refused["stderr"]
    assert bucket.names() == {".lease"}
    bucket.remove(".lease")  # as the message says
    assert run()["status"] == 0
    assert bucket.names() > KEPT


def test_a_bucket_that_is_not_there_is_one_line(run):
    done = run(output="s3://nowhere/run")
    assert done["status"] == 1
    [line] = errors(done["stderr"])
    assert "s3://nowhere/run" in line
    assert "not-to-be-shown" not in done["stderr"]
