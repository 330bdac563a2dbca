# Every format with every way of keeping less: kills, damage, resuming, shards and full disks, as for plain .npz files.
from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import featx
from featx.explore.verify import verify
from tests.faults.conftest import make_photos
from tests.faults.test_kills import moment
from tests.helpers import lines, tree

PHOTOS, BATCH = 24, 4

FIT = ("--components", "5", "--fit-on", "10")
SMALLER = {
    "whole": (),
    "grid": ("--grid", "3x2"),
    "components": FIT,
    "int8": ("--dtype", "int8"),
    "grid-half": ("--grid", "3x2", "--grid-pool", "max", "--dtype", "float16"),
    "all": ("--grid", "3x2", *FIT, "--dtype", "int8"),
    "bfloat16": (*FIT, "--dtype", "bfloat16"),
}
MAPS = ("npz", "safetensors", "webdataset", "zarr")
VECTORS = ("npy", "parquet")

EVERY = [
    *(f"{name}-{how}" for name in MAPS for how in SMALLER if how != "bfloat16" or name == "safetensors"),
    *(f"{name}-whole" for name in VECTORS),
]


def usually(*names):
    """Take these combinations; all of them with --large."""

    def marked(test):
        test.usually = names
        return test

    return marked


def pytest_generate_tests(metafunc):
    if "combination" in metafunc.fixturenames:
        chosen = EVERY if metafunc.config.getoption("large") else metafunc.function.usually
        metafunc.parametrize("combination", chosen, scope="module")


class Combination:
    """Runs of some photos in one format, with one way of keeping less."""

    def __init__(self, forge, folder, photos, format_, smaller) -> None:
        self._forge, self.folder, self.photos = forge, folder, photos
        what = ("--embedding",) if format_ in VECTORS or smaller == "all" else ()
        self.name = self.format, self.smaller = format_, smaller
        self.options = ("--format", format_, *SMALLER[smaller], *what, "--batch-size", str(BATCH))

    def __call__(self, folder, output="out", *more, photos=None, options=None, **request):
        photos = self.photos if photos is None else photos
        request = {"isolation": True, **request}
        options = self.options if options is None else options
        return self._forge.extract(folder, photos[0], output, *photos[1:], *options, *more, **request)

    def command(self, folder, *arguments):
        return self._forge(folder, *arguments)

    @property
    def is_fitted(self) -> bool:
        return "--components" in self.options


def basis_of(folder) -> str:
    path = folder / "basis.npz"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def digests(folder) -> dict[str, str]:
    """What the manifest says of each image that is done; its last line may be torn."""
    text = (folder / "manifest.jsonl").read_text()
    entries = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return {line["key"]: line["sha256"] for line in entries if line["status"] == "done"}


def require_complete(folder, expected) -> None:
    """Everything is there, once, as it should be, and nothing else."""
    assert digests(folder) == expected
    checked = verify(folder)
    assert (checked.sound, checked.complete, checked.checked) == (True, True, len(expected)), checked
    assert (checked.uncommitted, checked.foreign, checked.unfinished) == ([], [], 0)
    assert json.loads((folder / "summary.json").read_text())["state"] == "done"
    assert not (folder / ".unfinished").exists()


def require_nothing_lost(folder) -> dict[str, str]:
    """What a killed run has recorded is there; nobody else's files are. Returns the digests of what is recorded."""
    if not (folder / "summary.json").exists():
        return {}
    checked = verify(folder)
    assert (checked.missing, checked.damaged, checked.unreadable, checked.foreign) == ([], {}, [], []), checked
    found = digests(folder)
    assert not (found and checked.basis)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return sorted(make_photos(tmp_path_factory.mktemp("combinations") / "photos", PHOTOS).iterdir())


@pytest.fixture(scope="module")
def extract(forge, photos, combination, tmp_path_factory):
    return Combination(forge, tmp_path_factory.mktemp("whole"), photos, *combination.split("-", 1))


@pytest.fixture(scope="module")
def whole(extract):
    """An undisturbed run."""
    assert extract(extract.folder, isolation=False)["status"] == 0
    require_complete(extract.folder / "out", digests(extract.folder / "out"))
    return extract.folder / "out"


@pytest.fixture
def out(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "out")


@pytest.fixture(scope="module")
def backwards(extract, whole):
    """The digests of undisturbed runs by their bases: of one whose photos come in the opposite order, too."""
    assert extract(extract.folder, "backwards", photos=extract.photos[::-1], isolation=False)["status"] == 0
    folders = (whole, extract.folder / "backwards")
    found = {basis_of(folder): digests(folder) for folder in folders}
    assert len(found) == 1 + extract.is_fitted
    assert len({tuple(sorted(each.items())) for each in found.values()}) == len(found)
    return found


def kill(chance, mark) -> dict:
    """A request that kills a run: at a moment, or in a pass; those that fit components are first."""
    fault = {"name": "call", "number": 0, "kind": "EIO", "group": 4}  # nothing but small groups
    if chance.random() < 0.5:
        return {"steps": moment(chance, PHOTOS), "fault": fault}
    mark.unlink(missing_ok=True)
    fault = {"name": "hold", "after": chance.randrange(13), "mark": str(mark), "group": 4}
    return {"steps": [("exists", str(mark)), ("signal", signal.SIGKILL)], "fault": fault}


@usually("npz-all", "safetensors-components", "webdataset-grid-half", "zarr-all")
def test_kills_lose_nothing(extract, backwards, tmp_path, request):
    """Killed, resumed in either order, and killed again: what is recorded stays, on the basis that came first."""
    wanted = 50 if request.config.getoption("large") else 2
    chance, kills = random.Random(f"{extract.format} {extract.smaller}"), 0
    out = tmp_path / "out"
    while kills < wanted:
        recorded, basis = {}, ""
        for _ in range(chance.randint(1, 4)):
            order = extract.photos[:: chance.choice((1, -1))]
            done = extract(tmp_path, photos=order, **kill(chance, tmp_path / "mark"))
            assert done["status"] in (0, -9), done
            kills += done["status"] == -9
            found = require_nothing_lost(out)
            assert recorded.items() <= found.items()
            assert not recorded or basis_of(out) == basis
            recorded, basis = found, basis_of(out)
        assert extract(tmp_path, photos=extract.photos[:: chance.choice((1, -1))])["status"] == 0
        assert not recorded or basis_of(out) == basis
        require_complete(out, backwards[basis_of(out)])
        assert len(lines(out)) == PHOTOS
        shutil.rmtree(out)


@usually("webdataset-all", "zarr-int8")
def test_calls_fail_in_turn(extract, backwards, tmp_path, request):
    """A disk that is full, that breaks, and a process that is killed: at calls by chance, more of them with --large."""
    expected = backwards[basis_of(extract.folder / "out")]
    counter = tmp_path / "calls"
    counting = {"name": "call", "number": 0, "kind": "EIO", "counter": str(counter), "group": 4}
    assert extract(tmp_path, fault=counting)["status"] == 0
    shutil.rmtree(tmp_path / "out")
    calls = len(counter.read_text().split())
    large, chance = request.config.getoption("large"), random.Random(f"{extract.smaller} {extract.format}")
    for kind in ("ENOSPC", "EIO", "kill"):
        numbers = range(1, calls + 1)
        for number in chance.sample(numbers, 6) if large else [chance.choice(numbers)]:
            counter.unlink()
            failed = extract(tmp_path, fault={**counting, "number": number, "kind": kind})
            made = counter.read_text().split()
            if kind == "kill":
                assert failed["status"] in (-9, 0)
            elif failed["status"] == 0:  # what is only cleared away at the end may be left to the next run
                assert made[min(number, len(made)) - 1] == "unlink" or len(made) < number, (number, made)
            else:
                errors = [line for line in failed["stderr"].splitlines() if line.startswith("featx:")]
                assert (failed["status"], len(errors)) == (1, 1), (made, failed)
                assert "Unexpected" not in errors[0]
            require_nothing_lost(tmp_path / "out")
            resumed = extract(tmp_path)
            assert resumed["status"] == 0, (made, resumed)
            require_complete(tmp_path / "out", expected)
            shutil.rmtree(tmp_path / "out")


def files_of(out, kept=("manifest.jsonl", "summary.json")):
    return [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in kept]


def require_same_arrays(out, other) -> None:
    found, expected = featx.open_run(out, raw=True), featx.open_run(other, raw=True)
    assert {*found} == {*expected}
    for key in expected:
        arrays = found[key]
        assert list(arrays) == list(expected[key])
        assert all(np.array_equal(arrays[name], values) for name, values in expected[key].items()), key


def flipped(chance, data: bytes) -> bytes:
    bit = chance.randrange(8 * len(data))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@usually("safetensors-components", "webdataset-all", "zarr-all")
def test_a_flipped_bit_is_found_or_changes_nothing(whole, out, request):
    """Some formats have bytes that mean nothing, between their members: no other bit goes unnoticed."""
    chance, found = random.Random(9), 0
    for _ in range(100 if request.config.getoption("large") else 10):
        path = chance.choice(files_of(out))
        content = path.read_bytes()
        path.write_bytes(flipped(chance, content))
        if (checked := verify(out)).sound:
            require_same_arrays(out, whole)
        else:
            found += 1
            assert checked.damaged or checked.missing or (checked.basis and path.name == "basis.npz"), checked
        path.write_bytes(content)
    assert found
    assert verify(out).sound


def damaged(extract, out, key) -> None:
    """Change a number of an image's arrays, where it lies on the disk."""
    name = "embedding" if extract.format in VECTORS else "level_3"
    needle = np.array(featx.open_run(out, raw=True)[key][name]).tobytes()
    for path in files_of(out):
        data = bytearray(path.read_bytes())
        if (place := data.find(needle)) >= 0:
            data[place + len(needle) // 2] ^= 1
            path.write_bytes(data)
            return
    pytest.fail(f"{key} is in no file")


@usually("safetensors-components", "webdataset-grid-half", "zarr-all")
def test_damage_is_found_forgotten_and_made_good(extract, out, tmp_path):
    """A changed number, named by its image; then each file in turn torn off, and missing: what is left is the same."""
    expected, chance = digests(out), random.Random(10)
    damaged(extract, out, "0007.jpg")
    said = extract.command(tmp_path, "verify", "out", "--repair", "--json")
    found = json.loads(said["stdout"])
    assert (said["status"], found["missing"], "0007.jpg" in found["damaged"]) == (1, [], True)
    assert extract(tmp_path)["status"] == 0
    require_complete(out, expected)
    for hurt in (lambda path: path.write_bytes(path.read_bytes()[: chance.randrange(9)]), lambda path: path.unlink()):
        hurt(chance.choice(files_of(out, ("manifest.jsonl", "summary.json", "basis.npz", "zarr.json", "keys.txt"))))
        checked = verify(out)
        assert not checked.sound
        assert checked.missing or checked.damaged
        assert extract(tmp_path)["status"] == 0
        assert digests(out) == expected
        if not verify(out).sound:  # of several files of an image one is damaged that takes more than a look
            verify(out, repair=True)
            assert extract(tmp_path)["status"] == 0
        require_complete(out, expected)


@usually("safetensors-bfloat16", "webdataset-grid-half", "zarr-all", "npz-all")
def test_images_are_made_again_and_are_the_same(out):
    checked = verify(out, recompute=3)
    assert (checked.sound, checked.recomputed.images, checked.recomputed.deviation) == (True, 3, 0), checked


@usually("zarr-all")
def test_a_basis_that_is_lost_or_damaged_is_named_and_never_replaced(extract, whole, out, tmp_path):
    if not extract.is_fitted:
        return
    content = (out / "basis.npz").read_bytes()
    for change in (None, flipped(random.Random(11), content), content[:100]):
        (out / "basis.npz").unlink()
        if change is not None:
            (out / "basis.npz").write_bytes(change)
        what = "is missing" if change is None else "was changed: its sha256 differs"
        said = extract.command(tmp_path, "verify", "out")
        assert (said["status"], f"basis.npz {what}" in said["stdout"]) == (1, True), said
        before = tree(out)
        refused = extract(tmp_path)
        assert refused["status"] == 1
        assert f"The basis.npz of out {what}" in refused["stderr"]
        assert "Restore the file, or start from scratch with --overwrite" in refused["stderr"]
        assert tree(out) == before
        (out / "basis.npz").touch()
    assert extract(tmp_path, "out", "--overwrite")["status"] == 0
    assert (out / "basis.npz").read_bytes() == content
    require_complete(out, digests(whole))


@usually("webdataset-all", "safetensors-grid")
def test_a_second_call_computes_nothing_and_one_with_other_options_is_refused(extract, whole, out, tmp_path):
    before = tree(out)
    again = extract(tmp_path)
    assert (again["status"], "nothing to compute" in again["stderr"]) == (0, True), again
    assert tree(out) == before
    others = [name for name in SMALLER if name not in (extract.smaller, "whole", "bfloat16")]
    if extract.format in VECTORS:
        refused = extract(tmp_path, "out", "--grid", "2")
        assert refused["status"] in (1, 2)
        assert tree(out) == before
        return
    other = others[len(extract.format) % len(others)]
    options = ("--format", extract.format, *SMALLER[other], "--batch-size", str(BATCH))
    refused = extract(tmp_path, options=options)
    assert refused["status"] == 1
    assert "different recipe" in refused["stderr"]
    assert tree(out) == before
    assert extract(tmp_path, "out", "--overwrite", options=options)["status"] == 0
    assert bool(basis_of(out)) == ("--components" in options)
    require_complete(out, digests(out))
    assert extract(tmp_path, "out", "--overwrite")["status"] == 0
    require_complete(out, digests(whole))


@usually("zarr-all")
def test_making_all_anew_is_killed(extract, whole, tmp_path, request):
    """While the old outputs and their basis are removed, and after; made anew once more, it is the same run."""
    for number in range(1, 60, 5) if request.config.getoption("large") else (3, 30):
        out = shutil.copytree(whole, tmp_path / "out")
        fault = {"name": "call", "number": number, "kind": "kill", "group": 4}
        assert extract(tmp_path, "out", "--overwrite", fault=fault)["status"] in (0, -9)
        said = extract.command(tmp_path, "verify", "out")
        assert (said["status"] in (0, 1), "Unexpected" in said["stderr"]) == (True, False), said
        assert extract(tmp_path, "out", "--overwrite")["status"] == 0
        assert basis_of(out) == basis_of(whole)
        require_complete(out, digests(whole))
        shutil.rmtree(out)


@usually("zarr-all", "safetensors-components")
def test_shards_one_of_them_killed_make_the_same_run(extract, whole, tmp_path):
    """The first that begins fits the components, on photos of all shards."""
    if extract.format == "npy":
        pytest.skip("it is one file")
    chance = random.Random(12)
    numbers = chance.sample((1, 2, 3), 3)
    mark = tmp_path / "mark"
    fault = {"name": "hold", "after": chance.randrange(1, 6), "mark": str(mark), "group": 2}
    steps = [("exists", str(mark)), ("signal", signal.SIGKILL)]
    assert extract(tmp_path, "out", "--shard", f"{numbers[0]}/3", steps=steps, fault=fault)["status"] in (0, -9)
    require_nothing_lost(tmp_path / "out")
    for number in numbers[::-1]:
        assert extract(tmp_path, "out", "--shard", f"{number}/3")["status"] == 0
    assert extract.command(tmp_path, "merge", "out")["status"] == 0
    assert basis_of(tmp_path / "out") == basis_of(whole)
    require_complete(tmp_path / "out", digests(whole))


@usually("webdataset-all", "zarr-int8")
def test_what_failed_is_tried_again(extract, whole, tmp_path):
    """A photo that is mended costs itself alone, even if the components were fitted without it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photos = [shutil.copy2(path, folder / path.name) for path in extract.photos]
    photos[3].write_bytes(b"broken")
    assert extract(tmp_path, photos=photos)["status"] == 3
    basis, before = basis_of(tmp_path / "out"), digests(tmp_path / "out")
    assert len(before) == PHOTOS - 1
    shutil.copy2(extract.photos[3], photos[3])
    done = extract(tmp_path, "out", "--retry-failed", photos=photos)
    assert (done["status"], basis_of(tmp_path / "out")) == (0, basis), done
    found = digests(tmp_path / "out")
    assert before.items() < found.items()
    checked = verify(tmp_path / "out")
    assert (checked.sound, checked.complete, checked.checked, checked.foreign) == (True, True, PHOTOS, [])
    if not extract.is_fitted:
        require_same_arrays(tmp_path / "out", whole)


@usually()
def test_a_picture_that_crashes_its_decoder_costs_itself(extract, hostile, tmp_path):
    """Among those that components are fitted on: in a process of its own; or the call dies, and the next one knows."""
    crash = tmp_path / "crash.png"
    Image.new("RGB", (80, 60), "red").save(crash)
    crashing = Combination(hostile, tmp_path, [*extract.photos[:2], crash, *extract.photos[2:]], *extract.name)
    done = crashing(tmp_path, "isolated", "--isolate")
    assert done["status"] == 3, done
    assert crashing(tmp_path)["status"] == -11
    again = crashing(tmp_path)
    assert again["status"] == 3, again
    for out in (tmp_path / "isolated", tmp_path / "out"):
        (failed,) = (line for line in lines(out) if line["status"] == "failed")
        assert (failed["key"], failed["error"]) == ("crash.png", "the decoder crashed (SIGSEGV)")
        assert verify(out).sound
    assert len(digests(tmp_path / "out")) == PHOTOS
    assert digests(tmp_path / "out") == digests(tmp_path / "isolated")
    assert basis_of(tmp_path / "out") == basis_of(tmp_path / "isolated")
