# Every kind of input gives the bytes of the folder, wherever it lies; what fails there is one line, and no secret.
from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from featx import filesystems
from featx.engine.events import Planned
from featx.errors import FeatxError, UsageError
from featx.images import archives, remote
from featx.runs.merging import merge
from tests.helpers import HANGS, PHOTO, extract, lines, make_photos, outputs, tree
from tests.servers import s3_server, site_of

fsspec = pytest.importorskip("fsspec")

# What aiohttp and botocore leave to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = 12

# What is extracted of a place, so that keys and bytes are those of the folder `photos`.
KINDS = {
    "folder": "photos/",
    "pattern": "photos/**/*.jpg",
    "tar": "photos.tar",
    "tar.gz": "photos.tar.gz",
    "zip": "photos.zip",
    "table": "photos.parquet::image",
}
PLACES = ("disk", "memory", "s3", "web", "web without parts")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same photos, packed in all ways, wherever inputs can be: their folders or URLs by name."""
    home = tmp_path_factory.mktemp("inputs") / "in"
    photos = make_photos(home / "photos", COUNT - 2)
    (photos / "in a folder").mkdir()
    shutil.copy(PHOTO, photos / "in a folder" / "é ü.jpg")
    (photos / "broken.jpg").write_bytes(b"no image")
    files = sorted(path for path in photos.rglob("*.jpg"))
    for kind in ("tar", "tar.gz"):
        with tarfile.open(home / f"photos.{kind}", f"w:{kind.partition('.')[2]}") as archive:
            for file in files:
                archive.add(file, file.relative_to(photos))
    shutil.make_archive(str(home / "photos"), "zip", photos)
    rows = [{"bytes": file.read_bytes(), "path": str(file.relative_to(photos))} for file in files]
    parquet.write_table(pa.table({"image": rows}), home / "photos.parquet", row_group_size=5)
    patch = pytest.MonkeyPatch()
    with site_of(home) as web, s3_server(patch) as s3:
        s3.mkdir("bucket")
        for system, root in ((s3, "bucket"), (fsspec.filesystem("memory"), "/inputs")):
            system.put(f"{home}/", f"{root}/", recursive=True)
        urls = {"disk": str(home), "memory": "memory://inputs", "s3": "s3://bucket", "web": web.url}
        yield SimpleNamespace(urls=urls, home=home, web=web, s3=s3)
    patch.undo()
    fsspec.filesystem("memory").rm("/inputs", recursive=True)


@pytest.fixture
def web(places):
    """The folder on the web, with faults that a test gives it."""
    site = places.web
    yield site
    site.parts, site.together = True, None
    for faults in (site.breaks, site.status, site.asked):
        faults.clear()


@pytest.fixture(scope="module")
def expected(places, tmp_path_factory):
    out = tmp_path_factory.mktemp("inputs") / "out"
    extract(places.home / "photos", out)
    assert len(outputs(out)) == COUNT - 1
    return outputs(out)


def once_planned(function):
    """Return a listener that does something when a run is planned, and nothing is read yet."""
    return lambda event: function() if isinstance(event, Planned) else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_every_input_gives_the_bytes_of_the_folder_and_is_skipped_when_unchanged(
    places, web, expected, tmp_path, place, kind, monkeypatch
):
    web.parts = place != "web without parts"
    url = f"{places.urls[place.split(' ')[0]]}/{KINDS[kind]}"
    out = tmp_path / "out"
    report = extract(url, out)
    if place == "web without parts" and kind in ("zip", "table"):
        assert [failure.error for failure in report.failures] == ["its server does not support range requests"]
        return
    assert [failure.item.key for failure in report.failures] == ["photos/broken.jpg"]
    assert outputs(out) == expected
    root = f"{places.urls[place.split(' ')[0]]}/photos"
    assert all(line["path"].startswith(root) for line in lines(out))
    monkeypatch.setattr(archives._Index, "read", None)  # an archive that is known is not read again
    assert extract(url, out).tried == 0


@pytest.mark.parametrize("kind", ["folder", "tar", "table"])
def test_ray_gives_the_same_bytes(places, expected, tmp_path, kind, request):
    if not request.config.getoption("--large"):
        pytest.skip("takes --large")
    pytest.importorskip("ray", exc_type=ImportError)
    extract(f"s3://bucket/{KINDS[kind]}", tmp_path / "out", engine="ray", ray_workers=1)
    assert outputs(tmp_path / "out") == expected
    with pytest.raises(UsageError, match="memory:// is only seen by this process"):
        extract("memory://inputs/photos", tmp_path / "memory", engine="ray")


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_tables_in_folders_and_patterns(places, expected, tmp_path, place):
    root = places.urls[place]
    for text in (f"{root}/phot*.parquet::image", f"{root}/::image"):
        extract(text, tmp_path / "out")
        prefix = f"{root.rpartition('/')[2]}/"
        assert {name.removeprefix(prefix): digest for name, digest in outputs(tmp_path / "out").items()} == expected


@pytest.mark.parametrize("place", ["s3", "web"])
def test_images_are_read_here_for_the_processes_that_decode_them(places, expected, tmp_path, place):
    assert extract(f"{places.urls[place]}/photos/", tmp_path / "out", isolate=True).computed == COUNT - 1
    assert outputs(tmp_path / "out") == expected


def test_shards_of_remote_inputs_give_the_run_in_one_go(places, expected, tmp_path):
    for shard, kind in (("2/2", "photos.tar"), ("1/2", "photos.tar")):
        extract(f"s3://bucket/{kind}", tmp_path / "out", shard=shard)
    merge(tmp_path / "out")
    assert outputs(tmp_path / "out") == expected


def test_lists_hold_urls_and_paths(places, web, tmp_path, featx_command):
    names = [f"{web.url}/photos/0.jpg?token=a", "memory://inputs/photos/1.jpg", "s3://bucket/photos/gone.jpg"]
    names += [f"{places.home}/photos/2.jpg", "s3://bucket/photos.tar::3.jpg", "s3://bucket/photos.parquet::image::4"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    out = tmp_path / "out"
    report = extract((), out, from_file=tmp_path / "list.txt")
    assert [(each.item.path, each.stage, each.error) for each in report.failures] == [
        (names[2], "read", "no such file")
    ]
    keys = [line["key"] for line in lines(out)]
    assert keys[1:3] + keys[4:] == [
        *("inputs/photos/1.jpg", "bucket/photos/gone.jpg", "bucket/photos/3.jpg", "bucket/photos/4")
    ]
    assert keys[0].endswith("/photos/0.jpg")
    assert extract((), out, from_file=tmp_path / "list.txt").tried == 0


def test_changed_objects_are_noticed_by_their_version(places, tmp_path):
    data, other = ((places.home / "photos" / f"{number}.jpg").read_bytes().ljust(20_000, b"\0") for number in (0, 1))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        places.s3.pipe_file(f"bucket/changing/{name}", data)
    out = tmp_path / "out"
    assert extract("s3://bucket/changing", out).computed == 3
    places.s3.pipe_file("bucket/changing/b.jpg", other)
    places.s3.rm_file("bucket/changing/c.jpg")
    assert extract("s3://bucket/changing", out).computed == 1
    assert lines(out)[-1]["key"] == "changing/b.jpg"


def test_an_object_that_vanishes_meanwhile_is_one_failure(tmp_path, places):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe_file(f"/vanishing/{number}.jpg", (places.home / "photos" / f"{number}.jpg").read_bytes())

    vanish = once_planned(lambda: memory.rm_file("/vanishing/1.jpg"))
    report = extract("memory://vanishing", tmp_path / "out", listener=vanish)
    assert report.computed == 2
    assert [(each.item.key, each.stage, each.error) for each in report.failures] == [
        ("vanishing/1.jpg", "read", "no such file")
    ]


def test_a_connection_that_breaks_costs_at_most_its_image(web, expected, tmp_path):
    def break_down():
        web.asked.clear()
        web.breaks.update({"1.jpg": 1, "2.jpg": remote.ATTEMPTS})
        web.status.update({"3.jpg": 500, "4.jpg": 403})

    names = [f"{web.url}/photos/{number}.jpg" for number in range(6)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    report = extract((), tmp_path / "out", from_file=tmp_path / "list.txt", listener=once_planned(break_down))
    failures = {each.item.path: (each.stage, each.error) for each in report.failures}
    assert failures.pop(names[2])[0] == "read"
    assert failures == {
        names[3]: ("read", "its server answered 500 Internal Server Error"),
        names[4]: ("read", "access denied"),
    }
    assert web.asked["2.jpg"] == remote.ATTEMPTS
    assert set(outputs(tmp_path / "out").values()) == {expected[f"photos/{number}.jpg.npz"] for number in (0, 1, 5)}


def test_many_images_are_fetched_at_the_same_time(web, tmp_path):
    def wait_for_each_other():
        web.together = threading.Barrier(10, timeout=HANGS)

    report = extract(f"{web.url}/photos/*[0-9].jpg", tmp_path / "out", listener=once_planned(wait_for_each_other))
    assert (report.computed, report.failures) == (10, [])


def test_no_secret_is_written_or_said(web, tmp_path, featx_command):
    signed = f"{web.url}/photos/0.jpg?X-Amz-Signature=secret&token=secret"
    missing = f"{web.url}/photos/missing.jpg?sig=secret"
    archive = f"{web.url}/photos.tar?sig=secret"
    (tmp_path / "list.txt").write_text(f"{signed}\n{missing}\n{web.url}/photos.zip?sig=secret::1.jpg\n")
    heard = []
    extract([signed, archive], tmp_path / "out", listener=heard.append)
    assert extract([signed, archive], tmp_path / "out").tried == 0
    extract((), tmp_path / "list", from_file=tmp_path / "list.txt", listener=heard.append)
    assert [line["path"] for line in lines(tmp_path / "list")] == [
        *(f"{web.url}/photos/0.jpg", f"{web.url}/photos/missing.jpg", f"{web.url}/photos.zip::1.jpg")
    ]
    for folder in ("out", "list"):
        for name in tree(tmp_path / folder):
            assert b"secret" not in (tmp_path / folder / name).read_bytes()
    with pytest.raises(FeatxError) as failure:
        extract(missing, tmp_path / "out")
    assert "secret" not in str(failure.value)
    for url in ("https://user:secret@host/a.jpg", "s3://key:secret@bucket/a.jpg", "https://secret@host/a"):
        done = featx_command("extract", url, "--model", "test_resnet")
        assert (done.returncode, "secret" in done.stderr) == (2, False)
        with pytest.raises(UsageError, match="credentials"):
            extract((), tmp_path / "out", from_file=_list_of(tmp_path, url))


def _list_of(folder, *names):
    (folder / "names.txt").write_text("\n".join(names))
    return folder / "names.txt"


def test_what_reads_photos_of_a_run_reads_remote_ones_too(web, tmp_path, featx_command):
    for name in ("photos/*[0-9].jpg", "photos.zip", "photos.parquet::image"):
        out = tmp_path / f"run-{name.count('.')}-{len(name)}"
        extract(f"{web.url}/{name}", out, embedding=True)
        path = lines(out)[1]["path"]
        done = featx_command("similar", out, path, "--count", 2, "--json")
        assert done.returncode == 0, done.stderr
        assert f'"{lines(out)[1]["key"]}"' not in done.stdout
        done = featx_command("verify", out, "--recompute", 3, "--json")
        assert json.loads(done.stdout)["recomputed"]["images"] == 3, done.stderr
        done = featx_command("view", out, "-o", tmp_path / "levels.png")
        assert done.returncode == 0, done.stderr
    done = featx_command(
        *(
            "view",
            f"{web.url}/photos/0.jpg",
            "--model",
            "test_resnet",
            "--weights",
            "random",
            "-o",
            tmp_path / "one.png",
        )
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("xyz://bucket/a.jpg", "There is no protocol xyz"),
        ("s3://nowhere/photos", "There is no file or folder s3://nowhere/photos"),
        ("s3://bucket/nothing", "There is no file or folder s3://bucket/nothing"),
        ("s3://bucket/*.bmp", "There are no images in s3://bucket/*.bmp"),
        ("s3://*/a.jpg", "has wildcards in the name of the bucket or server"),
        ("s3://", "names no bucket or server"),
        ("file:///tmp/a.jpg", "is the URL of a local file"),
        ("gs://bucket/a.jpg", "gs:// needs a library"),
        ("http://127.0.0.1:9/a.jpg", "Cannot connect to host 127.0.0.1:9"),
        ("http://127.0.0.1:9/photos/", "cannot be listed: Cannot connect to host 127.0.0.1:9"),
    ],
)
def test_what_cannot_be_read_is_one_line(places, tmp_path, url, said):
    with pytest.raises(FeatxError) as failure:
        extract(url, tmp_path / "out")
    assert said in failure.value.message
    assert "\n" not in str(failure.value)
    assert not os.path.lexists(tmp_path / "out")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystems, "find_spec", lambda name: None)
    filesystems._shared.cache_clear()
    with pytest.raises(
        FeatxError, match=r"s3:// needs fsspec, which is not installed. Run `pip install 'featx\[remote\]'`"
    ):
        extract("s3://bucket/photos", tmp_path / "out")
    filesystems._shared.cache_clear()
