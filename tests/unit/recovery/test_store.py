"""Folders and buckets: files are there whole or not at all, and secrets stay where they are."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from haclient.errors import ConfigError
from haclient.recovery.errors import BackupDamaged, StoreFailed
from haclient.recovery.store import PART, Store, Stored, open_store


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the address of an S3 bucket, with the access key in the environment as usual."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="backups")
        yield "s3://backups"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path))
    return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_files_are_written_listed_read_and_deleted(store: Store) -> None:
    store.write("a/x/one.txt", b"one")
    store.write("a/two.txt", b"")
    store.write("b/three.txt", b"3")
    assert store.files() == [Stored("a/two.txt", 0), Stored("a/x/one.txt", 3), Stored("b/three.txt", 1)]
    assert store.files("a/x") == [Stored("a/x/one.txt", 3)]
    assert store.files("none") == []
    assert store.folders() == ["a", "b"]
    assert store.read("a/x/one.txt") == b"one"
    assert (store.exists("a/x/one.txt"), store.exists("a/x"), store.exists("a/x/none.txt")) == (True, False, False)
    store.delete("a/x/one.txt")
    store.delete("a/x/one.txt")
    assert store.files("a") == [Stored("a/two.txt", 0)]
    store.delete_folder("a")
    store.delete_folder("a")
    assert (store.folders(), store.files()) == (["b"], [Stored("b/three.txt", 1)])


def test_an_empty_store_is_no_error(store: Store) -> None:
    assert (store.files(), store.folders(), store.exists("a/b")) == ([], [], False)
    with pytest.raises(FileNotFoundError):
        store.read("a/b")


def test_a_file_is_replaced_as_a_whole(store: Store) -> None:
    store.write("a/b", b"old and longer")
    with store.open_write("a/b") as sink:
        sink.write(b"new")
        assert store.read("a/b") == b"old and longer"
    assert store.read("a/b") == b"new"


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.open_write("a/b") as sink:
            sink.write(b"x" * 100_000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.files() == []


WRITER = """
import sys
from haclient.recovery.store import open_store
with open_store(sys.argv[1]).open_write("a/b") as sink:
    sink.write(b"half" * 500_000)
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_what_was_there_before(store: Store) -> None:
    store.write("a/b", b"before")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert store.read("a/b") == b"before"
    left = [file.path for file in store.files() if not file.path.endswith(PART)]
    assert left == ["a/b"]
    store.write("a/b", b"after")
    assert store.files() == [Stored("a/b", 5)]


def test_a_file_is_read_only_if_it_is_what_was_written(store: Store) -> None:
    with store.open_write("a/b") as sink:
        sink.write(b"some")
        sink.write(b"thing")
    assert (sink.size, sink.tell()) == (9, 9)
    with store.open_checked("a/b", sink.size, sink.sha256) as file:
        assert file.read() == b"something"
    for path, size, words in (("a/b", 8, "9 bytes instead of 8"), ("a/c", 9, "missing")):
        with pytest.raises(BackupDamaged, match=f"{path}.*{words}"), store.open_checked(path, size, sink.sha256):
            pass
    store.write("a/b", b"somethinG")
    with pytest.raises(BackupDamaged, match="a/b is not what was written"), store.open_checked("a/b", 9, sink.sha256):
        pass


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.part", "a\\b", "a\nb"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="no path of a file in a backup"):
        open_store(str(tmp_path)).write(path, b"")


# Addresses.


def test_secrets_in_an_address_are_never_shown() -> None:
    store = open_store("s3://someone:hidden%2Fkey@bucket/backups?endpoint_override=127.0.0.1:1&scheme=http&region=x")
    assert store.url == "s3://bucket/backups"
    assert "hidden" not in repr(store) + str(vars(store))
    for address in ("s3://someone:hidden key@bucket/x", "s3://someone:hidden@bucket/x?nonsense=1"):
        with pytest.raises(ConfigError, match="no usable address of a bucket") as error:
            open_store(address)
        assert "hidden" not in f"{error.value}{error.value.__cause__}"
        assert error.value.__suppress_context__


@pytest.mark.parametrize("address", ["gs://bucket/x", "https://example.com/x", "file:///x"])
def test_what_is_neither_folder_nor_bucket_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="write a folder, or s3://bucket/prefix"):
        open_store(address)


def test_a_bucket_that_is_missing_is_named(bucket: str) -> None:
    store = open_store("s3://no-such-bucket/x")
    with pytest.raises(StoreFailed, match="cannot write a/b at s3://no-such-bucket/x"):
        store.write("a/b", b"x")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(handle: int) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(str(tmp_path))
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StoreFailed, match=f"cannot write a/b at {tmp_path}: .*No space left"):
        store.write("a/b", b"x")
    assert store.files() == []
