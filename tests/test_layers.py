# Who may import whom, and what no file may do.
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featx"

# A module may import those of earlier rows only, unless the arrow is named below.
ROWS = [
    {"errors"},
    {"records", "resources", "stopping", "stages"},
    {"files", "naming", "lists", "walking"},
    {"streams"},
    {"geometry", "sources", "formats", "tracing", "catalogue", "lease", "tiff", "jpeg2000", "pieces"},
    {"containers", "colours"},
    {"summaries", "formats.npz", "formats.npy", "formats.parquet", "backbones"},
    {"manifest"},
    {"suspects", "locking", "planning", "process", "filetypes"},
    {"checkpoints"},
    {"weights", "preprocess", "dataset", "reading"},
    {"backbones.levels"},
    {"backbones.timm", "backbones.yolo"},
    {"backbones.timm_extras"},
    {"backbones.timm_loading"},
    {"backbones.timm_survey"},
    {"backbones.timm_source"},
    {"decoding"},
    {"isolation"},
    {"networks"},
    {"pyramid", "models", "fetching"},
    {"computing"},
    {"pipeline"},
    {"extraction"},
    {"bench", "verification", "similarity"},
    {"render"},
    {"cli"},
    {"__main__"},
]

KNOWN = set().union(*ROWS) | {"__init__"}

# Imported by one file only.
ALONE = {
    "typer": {"cli"},
    "rich": {"render"},
    "timm": {
        *("backbones.timm", "backbones.timm_extras", "backbones.timm_loading", "backbones.timm_survey"),
        *("fetching", "preprocess"),
    },
    "ultralytics": {"backbones.yolo"},
    "pyarrow": {"formats.parquet"},
    "huggingface_hub": {"weights"},
}

# Never imported when the command line starts.
HEAVY = ("torch", "timm", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors")


# Named by no other file: the tables find them by their names.
PLUGINS = {"formats.npz", "formats.npy", "formats.parquet", "backbones.yolo", "backbones.timm_source"}


def modules():
    """Return the syntax trees of all modules by their names: ``pipeline``, ``formats.npz``, ``formats``."""
    return {_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def _name(path):
    pieces = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" and len(pieces) > 1 else pieces)


def imports(tree):
    """Return the dotted names that a module imports, those for type checkers alone left out."""
    found = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            if getattr(node.test, "id", "") != "TYPE_CHECKING":
                self.generic_visit(node)

        def visit_Import(self, node):
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node):
            packages = ("featx", "featx.models.libraries", "featx.runs.formats")
            inner = {f"{node.module}.{alias.name}" for alias in node.names if node.module in packages}
            known = {name for name in inner if name.removeprefix("featx.") in KNOWN}
            found.update(known if len(known) == len(node.names) else {*known, node.module})

    Visitor().visit(tree)
    return found


def test_every_module_has_its_row():
    assert set(modules()) == KNOWN


@pytest.mark.parametrize("name", sorted(set().union(*ROWS)))
def test_imports_point_one_way(name):
    row = next(number for number, row in enumerate(ROWS) if name in row)
    allowed = set().union(*ROWS[:row])
    if name == "reading":
        allowed.add("dataset")  # which torch's data loaders need, and readers of arrays do not
    own = {dotted.removeprefix("featx.") for dotted in imports(modules()[name]) if dotted.startswith("featx.")}
    assert own <= allowed
    assert not own & PLUGINS


@pytest.mark.parametrize("library", ALONE)
def test_libraries_stay_in_their_rooms(library):
    users = {
        name for name, tree in modules().items() if any(dotted.split(".")[0] == library for dotted in imports(tree))
    }
    assert users == ALONE[library]


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *Path(__file__).parent.glob("*.py")]), ids=lambda path: path.name
)
def test_the_first_line_says_what_lives_there(path):
    text = path.read_text()
    assert not text or text.startswith("# ")


def test_the_bodies_of_commands_are_short():
    for node in modules()["cli"].body:
        if isinstance(node, ast.FunctionDef):
            body = [
                statement for statement in node.body if not isinstance(getattr(statement, "value", None), ast.Constant)
            ]
            assert body[-1].end_lineno - body[0].lineno < 15, node.name


def test_nothing_is_printed_by_the_library():
    for name, tree in modules().items():
        if name not in ("cli", "render", "__main__"):
            called = {
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert "print" not in called, name


@pytest.mark.parametrize("code", ["import featx", "import featx.cli", "from featx.cli import app; app(['--help'])"])
def test_starting_loads_nothing_heavy(code):
    loaded = f"print([module for module in {HEAVY} if module in sys.modules], file=sys.stderr)"
    script = f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit:\n    pass\n{loaded}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_public_names_are_what_the_package_promises():
    import featx

    for name in featx.__all__:
        assert callable(getattr(featx, name))
    with pytest.raises(AttributeError, match="nonsense"):
        featx.nonsense  # noqa: B018
