"""Write what every command shows on terminals of two widths, to be read before it is committed.

    python scripts/write_screens.py

The files are ``tests/cli/screens/NAME.COLUMNS.txt``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cli import screens
from tests.conftest import Forge

NO_HUB = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere", "TORCH_HOME": "/nowhere", "NO_COLOR": None}


def main() -> None:
    """Write all screens."""
    forge = Forge()
    for stale in screens.HERE.glob("*.txt"):
        stale.unlink()
    for size in screens.SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in screens.shown(forge, Path(folder), NO_HUB, size):
                screens.path_of(name, size).write_text(text)
    forge.close()


if __name__ == "__main__":
    main()
