# Parquet tables of photos: what is damaged costs its own rows, one plain sentence each, and never the run.
from __future__ import annotations

import pyarrow as pa
import pytest
from pyarrow import parquet

from featx.errors import UsageError
from tests.helpers import extract, make_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The bytes of four photos."""
    folder = make_photos(tmp_path_factory.mktemp("tables") / "photos", 4)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def write(path, images, kind=None, **options):
    parquet.write_table(pa.table({"image": pa.array(images, kind), "label": range(len(images))}), path, **options)
    return f"{path}::image"


def failures(report):
    return {failure.item.key: (failure.stage, failure.error) for failure in report.failures}


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_rows_that_hold_no_image_cost_themselves(photos, tmp_path, kind):
    """A column of bytes, or of bytes and paths, as Hugging Face writes it: whatever of them is null."""
    rows = [photos[0], None, b"no image", photos[1], b"", photos[2][:700]]
    types = {"binary": pa.binary(), "large_binary": pa.large_binary()}
    names = [f"photos/{row}" for row in range(7)]
    if kind == "struct":
        paths = ["a.jpg", None, "b/c.jpg", None, "d.jpg", "../e.jpg"]
        rows = [{"bytes": data, "path": path} for data, path in zip(rows, paths, strict=True)]
        rows.append(None)
        types["struct"] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        names = [f"photos/{name}" for name in ("a.jpg", "1", "b/c.jpg", "3", "d.jpg", "5", "6")]
    url = write(tmp_path / "photos.parquet", rows, types[kind])
    report = extract(url, tmp_path / "out")
    assert report.computed == 2
    found = failures(report)
    null, none, empty, torn, *last = names[1], names[2], names[4], names[5], *names[6 : len(rows)]
    assert {*found} == {null, none, empty, torn, *last}
    for key in (null, *last):
        assert found[key] == ("read", "null: there is no image in this row")
    assert {found[key][0] for key in (none, empty, torn)} <= {"read", "decode"}
    assert all(error and "\n" not in error and "Error" not in error for _, error in found.values()), found
    assert extract(url, tmp_path / "out").tried == 0


def test_a_torn_table_is_one_failure_beside_others(photos, tmp_path):
    whole, torn, empty = (tmp_path / "in" / f"{name}.parquet" for name in ("whole", "torn", "zero"))
    whole.parent.mkdir()
    write(whole, photos)
    torn.write_bytes(whole.read_bytes()[:-100])
    empty.write_bytes(b"")
    report = extract(f"{tmp_path}/in/::image", tmp_path / "out")
    assert report.computed == 4
    found = failures(report)
    assert len(found) == 2
    assert all(text.startswith("it is not a Parquet table, or damaged: ") for _, text in found.values())


def test_a_damaged_row_group_costs_its_rows(photos, tmp_path):
    url = write(tmp_path / "photos.parquet", photos, row_group_size=2, write_page_checksum=True, compression="none")
    data = bytearray((tmp_path / "photos.parquet").read_bytes())
    data[data.index(photos[1]) + 300] ^= 1
    (tmp_path / "photos.parquet").write_bytes(data)
    report = extract(url, tmp_path / "out")
    found = failures(report)
    assert {*found} == {"photos/0", "photos/1"}
    assert all(text.startswith("the table is damaged: ") for _, text in found.values())
    assert report.computed == 2


@pytest.mark.parametrize(
    ("column", "said", "way"),
    [
        ("picture", r"photos\.parquet has no column picture", "Its columns are image and label"),
        ("label", r"Column label of .*photos\.parquet holds int64, not images", "a struct of bytes and path"),
    ],
)
def test_a_column_that_has_no_images_is_a_wrong_call(photos, tmp_path, column, said, way):
    write(tmp_path / "photos.parquet", photos)
    with pytest.raises(UsageError, match=said) as caught:
        extract(f"{tmp_path}/photos.parquet::{column}", tmp_path / "out")
    assert way in caught.value.hint
    assert not (tmp_path / "out").exists()
