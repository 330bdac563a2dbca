# The faults themselves: they reach whatever touches the disk, by `os`, by `open` and by pathlib.
from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers import ROOT

CALLS = (
    *("open(file)", "file.open('r+b')", "file.read_bytes()", "file.read_text()", "file.write_bytes(b'')"),
    *("file.stat()", "file.lstat()", "file.unlink()", "file.rename('other')", "file.replace('other')"),
    *("Path('folder', 'inner').mkdir()", "file.parent.rmdir()", "file.readlink()", "Path('other').hardlink_to(file)"),
    *("Path('other').touch(exist_ok=False)", "list(file.parent.iterdir())", "file.resolve(strict=True)"),
    *("os.open(file, os.O_RDONLY)", "os.truncate(file, 1)", "os.utime(file)", "list(os.scandir('folder'))"),
    *("file.samefile('folder')",),
)

# Each of the calls is the first that touches the folder, and has to fail.
SCRIPT = """
import errno, os, sys
from pathlib import Path
from tests.faults import faults

file = Path("folder", "file")
file.parent.mkdir()
file.write_bytes(b"data")
injected = faults.Faults(0, "EIO", "", "", [os.getcwd()], faults.CALLS)
for call in sys.argv[1:]:
    injected._number = len(injected.calls) + 1
    try:
        eval(call)
    except OSError as error:
        assert error.errno == errno.EIO, call
    else:
        print(call)
"""


def test_they_reach_every_way_to_the_disk(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *CALLS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert (tmp_path / "folder" / "file").read_bytes() == b"data"
