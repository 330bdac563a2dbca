# Annotations: what is read of COCO and CSV files, which rows are refused and why, and the photos that names mean.
from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import UsageError
from featx.images import cells
from featx.images.annotations import Mark, matched, read_boxes, read_points, usable
from featx.images.frame import Frame

SIDES = st.floats(0.01, 5000, allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)
BOXES = st.lists(st.tuples(st.sampled_from(["a/1.jpg", "ä, 2.png", '"3".png']), SIDES, SIDES, SIDES, SIDES, TEXTS))


def read(data: str | bytes, reader=read_boxes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return reader(path)


def rows(found):
    return {name: [(mark.place, mark.id, mark.label) for mark in marks] for name, marks in found.marks.items()}


def reasons(found):
    return [(fault.line, fault.key, fault.reason) for fault in found.faults]


def as_csv(boxes) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["label", "id", "y2", "x1", "y1", "x2", "key"])
    for number, (name, x, y, width, height, label) in enumerate(boxes):
        writer.writerow([label, number, y + height, x, y, x + width, name])
    return text.getvalue()


def as_coco(boxes) -> str:
    names = list(dict.fromkeys(box[0] for box in boxes))
    labels = list(dict.fromkeys(box[5] for box in boxes))
    return json.dumps(
        {
            "info": {},
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
            "annotations": [
                {
                    "id": number,
                    "image_id": names.index(name),
                    "category_id": labels.index(label),
                    "bbox": [x, y, width, height],
                    "segmentation": [[1.5, 2.5, 3.5]],
                    "iscrowd": 1,
                }
                for number, (name, x, y, width, height, label) in enumerate(boxes)
            ],
        }
    )


@given(BOXES)
def test_coco_and_csv_of_the_same_boxes_are_the_same(boxes):
    one, other = read(as_csv(boxes)), read(as_coco(boxes))
    assert rows(one) == rows(other)
    assert one.digest == other.digest
    assert not one.faults
    assert not other.faults
    for name, marks in one.marks.items():
        expected = [
            ((x, y, x + width, y + height), str(number), label)
            for number, (key, x, y, width, height, label) in enumerate(boxes)
            if key == name
        ]
        assert rows(one)[name] == expected
        assert [mark.line for mark in marks] == [int(number) + 2 for _, number, _ in expected]
        assert [mark.line for mark in other.marks[name]] == [int(number) + 1 for _, number, _ in expected]


def test_the_digest_is_that_of_the_boxes_their_ids_and_labels():
    head = "key,x1,y1,x2,y2,id,label\n"
    texts = ["a,1,2,3,4,i,l", "a,1,2,3,5,i,l", "b,1,2,3,4,i,l", "a,1,2,3,4,j,l", "a,1,2,3,4,i,m", "a,1,2,3,4,,il"]
    assert len({read(head + text).digest for text in texts}) == len(texts)
    assert read(f"{head}a,1,2,3,4\nb,1,2,3,4\n").digest == read(f"{head}b,1.0,2,3,4\r\n\na,1,2,3,4,,").digest


def test_a_bad_row_of_csv_costs_itself():
    found = read(
        "\ufeffid,KEY, x1,y1,x2,y2\r\n7,a.jpg,1,2,3,4\r\n7,a.jpg,1,2,3,5\r\n7,b.jpg,1,2,3,5\r\n\r\n"
        '8,a.jpg,nan,2,3,4\r\n9,,1,2,3,4\r\n9,"c\r\n.jpg",1,2,3,4\r\n9,b.jpg,1,2\r\n10,b.jpg,1,abc,3,\r\n'
    )
    assert rows(found) == {
        "a.jpg": [((1, 2, 3, 4), "7", "")],
        "b.jpg": [((1, 2, 3, 5), "7", "")],
        "c\r\n.jpg": [((1, 2, 3, 4), "9", "")],
    }
    assert reasons(found) == [
        (3, "a.jpg", "line 2 has the same id, 7"),
        (6, "a.jpg", "x1 is not a number: 'nan'"),
        (7, "", "it names no photo"),
        (10, "b.jpg", "the row ends after 4 cells"),
        (11, "b.jpg", "y1 is not a number: 'abc'"),
    ]


def test_a_bad_annotation_of_coco_costs_itself():
    images = [
        '{"id":1,"file_name":"a.jpg","width":4,"height":5}',
        '{"id":2},{"id":3,"file_name":"c"},{"id":3,"file_name":"d"},8',
    ]
    annotations = [
        '{"id":1,"image_id":1,"bbox":[1,2,3,NaN]}',
        '{"id":1,"image_id":1,"category_id":5,"bbox":[1,2,3,4]}',
        '{"image_id":2,"bbox":[1,2,3,4]}',
        '{"image_id":3,"bbox":[1,2,3,4]}',
        '{"image_id":9,"bbox":[1,2,3,4]}',
        "7",
        '{"image_id":1}',
        '{"image_id":1,"bbox":[1,2,3,"x"]}',
        '{"image_id":1,"bbox":[1,2,3,true]}',
        f'{{"image_id":1,"bbox":[1,2,3,1{"0" * 400}]}}',
    ]
    found = read(f'{{"images":[{",".join(images)}],"annotations":[{",".join(annotations)}]}}')
    assert rows(found) == {"a.jpg": [((1, 2, 4, 6), "1", "5")]}
    assert found.sizes == {"a.jpg": (4, 5)}
    assert [(line, reason) for line, _, reason in reasons(found)] == [
        (1, "its height is not a number"),
        (3, "this image has no file_name"),
        (4, "several images have this id"),
        (5, "no image has this id"),
        (6, "no image has this id"),
        (7, "its bbox is not a list of four numbers"),
        (8, "its height is not a number: 'x'"),
        (9, "its height is not a number: 'True'"),
        (10, f"its height is not a number: '1{'0' * 39}'"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\nIHDR", "is an image, not a file of boxes"),
        (b"PK\3\4 and more", "is an archive, not a file of boxes"),
        (b"key,x1,y1,x2\na,1,2,3\n", "has no column y2 in its first line.*key,x1,y1,x2,y2"),
        (b"photos/1.jpg\nphotos/2.jpg\n", "has no column key"),
        (
            b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
            "is JSON, but not COCO's with images and annotations",
        ),
        (b'{"annotations": []}', "missing required field `images`"),
        (b'{"images": [], "annotations": {}}', "Expected `array`, got `object`"),
        (b'{"images": [], "annotations": ', "begins like JSON, but cannot be read"),
        (b"{" * 100_000, "begins like JSON, but cannot be read"),
        (b"key,x1,y1,x2,y2\n" + b"a" * 200_000 + b",1,2,3,4", "is not CSV from line 2 on"),
        ("key,x1".encode("utf-16") + b"\0", "looks like utf-16, but cannot be decoded"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(data, words):
    with pytest.raises(UsageError, match=words) as raised:
        read(data)
    assert raised.value.hint


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, "\0"):
        with pytest.raises(UsageError, match=r"The points in .* cannot be read: "):
            read_points(path)


def test_points_are_read_and_any_unicode():
    text = "label,key,y,x\nnose,ä.jpg,2.5,1\n,ä.jpg,2,inf\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        found = read(text.encode(encoding), read_points)
        assert rows(found) == {"ä.jpg": [((1.0, 2.5), "", "nose")]}
        assert reasons(found) == [(3, "ä.jpg", "x is not a number: 'inf'")]


def test_names_that_are_not_utf8_are_the_keys_of_such_files():
    assert list(read(b"key,x1,y1,x2,y2\n\xe9.jpg,1,2,3,4\n").marks) == [r"\xe9.jpg"]


def test_a_name_means_the_photo_that_ends_with_it_if_there_is_one():
    keys = ["photos/a/1.jpg", "photos/b/1.jpg", "photos/a/2.jpg", "3.jpg", "photos/11.jpg", "1.png"]
    names = {
        "photos/a/1.jpg": "photos/a/1.jpg",
        "a/1.jpg": "photos/a/1.jpg",
        "./a/1.jpg": "photos/a/1.jpg",
        "/data/photos/b/1.jpg": "photos/b/1.jpg",
        "2.jpg": "photos/a/2.jpg",
        "/data/3.jpg": "3.jpg",
        "other/3.jpg": "no photo of the run has this name",
        "1.jpg": "its name fits several photos, among them photos/a/1.jpg and photos/b/1.jpg",
        "b/2.jpg": "no photo of the run has this name",
        "11.jpg": "photos/11.jpg",
        ".jpg": "no photo of the run has this name",
    }
    given_boxes = read(
        "key,x1,y1,x2,y2\n" + "".join(f"{name},1,2,3,{number + 4}\n" for number, name in enumerate(names))
    )
    found = matched(given_boxes, keys, lambda key: f"/data/{key}")
    lines = {mark.line: key for key, marks in found.marks.items() for mark in marks}
    lines |= {fault.line: fault.reason for fault in found.faults}
    assert [lines[line] for line in sorted(lines)] == list(names.values())
    assert all(mark.key == key for key, marks in found.marks.items() for mark in marks)
    assert [mark.line for mark in found.marks["photos/a/1.jpg"]] == [2, 3, 4]


FRAME = Frame.of((100, 60)).resized((50, 30)).centred((30, 30))  # sees 20 ... 80 of the width


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ((30, 10, 50, 40), ""),
        ((-10, -10, 30, 70), ""),
        ((99, 0, 100.01, 60), "the box lies in a part of the photo that was cropped away"),
        ((0, 0, 20, 60), "the box lies in a part of the photo that was cropped away"),
        ((0, 0, 20.5, 60), ""),
        ((100, 0, 120, 60), "the box lies outside the photo, which is 100 x 60"),
        ((30, 10, 30, 40), "the box has no area"),
        ((50, 10, 30, 40), "the box has no area"),
        ((30, 10), ""),
        ((19.4, 10), "the point lies in a part of the photo that was cropped away"),
        ((30, 59.6), "the point lies outside the photo, which is 100 x 60"),
        ((30, 59.5), ""),
    ],
)
def test_what_can_be_used_of_a_photo(place, reason):
    good, faults = usable([Mark("a", place, "", "", 5)], (100, 60), FRAME)
    assert [fault.reason for fault in faults] == ([reason] if reason else [])
    assert [mark.place for mark in good] == ([] if reason else [place])
    if len(place) == 4:
        assert bool(reason) == np.isnan(cells.cut(FRAME, [place])).any()


@pytest.mark.parametrize("orientation", [1, 6])
def test_another_size_in_the_file_refuses_all_boxes_of_the_photo(orientation):
    frame = Frame.of((100, 60), orientation)
    marks = [Mark("a", (1, 2, 3, 4), "", "", line) for line in (3, 9)]
    assert usable(marks, (100, 60), frame, (100, 60)) == (marks, [])
    good, faults = usable(marks, (100, 60), frame, (60, 100))
    assert (good, [fault.line for fault in faults]) == ([], [3, 9])
    turned = " when upright (EXIF orientation 6)" if orientation == 6 else ""
    assert {fault.reason for fault in faults} == {
        f"the file says that the photo is 60 x 100, but it is 100 x 60{turned}"
    }
