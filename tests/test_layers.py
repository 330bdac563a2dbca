# Who may import whom, and what no file may do.
from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featx"

# The rooms from the ground up; a room may import those before it. What is not in a room is the ground floor.
ROOMS = ("floor", "images", "models", "runs", "engine", "explore", "cli")

# Rooms on one storey, which do not know each other.
APART = {("models", "runs"), ("runs", "models")}

# Imported by some modules only.
ALONE = {
    "typer": {"cli.application", "cli.arguments", "cli.model_commands", "cli.run_commands", "cli.usage"},
    "rich": {"cli.descriptions", "cli.progress", "cli.reports", "cli.streams", "cli.tables"},
    "timm": {
        *("models.timm.attention", "models.timm.building", "models.timm.input", "models.timm.loading"),
        *("models.timm.outputs", "models.timm.reference", "models.timm.survey", "models.fetching", "images.fitting"),
    },
    "ultralytics": {"models.yolo.importing"},
    "h5py": {"runs.formats.hdf5"},
    "pyarrow": {"explore.vector_tables", "images.tables", "runs.formats.parquet"},
    "fsspec": {"filesystems"},
    "huggingface_hub": {"models.hub"},
    "ray": {"engine.cluster", "engine.ray"},
}

# Never imported when the command line starts.
HEAVY = ("torch", "timm", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors")


# Named by no other file: the tables find them by their names.
PLUGINS = {
    *(f"runs.formats.{name}" for name in ("hdf5", "npy", "npz", "parquet", "safetensors", "webdataset", "zarr")),
    *("models.yolo.library", "models.timm.library"),
}


@cache
def modules():
    """Return the syntax trees of all modules by their names: ``files``, ``runs.formats.npz``, ``runs.formats``."""
    return {_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def _name(path):
    pieces = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" and len(pieces) > 1 else pieces)


KNOWN = set(modules())


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
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("featx.") in KNOWN else node.module)

    Visitor().visit(tree)
    return found


@cache
def own_imports():
    """Return, of every module, which modules of featx it imports."""
    return {
        name: {dotted.removeprefix("featx.") for dotted in imports(tree) if dotted.startswith("featx.")}
        for name, tree in modules().items()
    }


def room(name):
    return name.split(".")[0] if name.split(".")[0] in ROOMS else "floor"


def test_every_room_is_known():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ROOMS) - {"floor"}


@pytest.mark.parametrize("name", sorted(KNOWN - {"__main__"}))
def test_arrows_between_rooms_point_one_way(name):
    here = room(name)
    for other in own_imports()[name]:
        there = room(other)
        assert ROOMS.index(there) <= ROOMS.index(here), f"{name} imports {other}"
        assert (here, there) not in APART, f"{name} imports {other}"
        assert other not in PLUGINS or (here == "models" and other.startswith("models.")), f"{name} imports {other}"


def test_no_module_imports_itself_through_others():
    arrows = own_imports()
    graph = TopologicalSorter({name: arrows[name] & KNOWN for name in arrows})
    graph.prepare()


def test_no_module_imports_the_package_s_face():
    users = {name for name, tree in modules().items() if "featx" in imports(tree)}
    assert users <= {"cli.application"}


@pytest.mark.parametrize("library", ALONE)
def test_libraries_stay_in_their_rooms(library):
    users = {
        name for name, tree in modules().items() if any(dotted.split(".")[0] == library for dotted in imports(tree))
    }
    assert users == ALONE[library]


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]), ids=lambda path: path.name
)
def test_the_first_line_says_what_lives_there(path):
    text = path.read_text()
    assert not text or text.startswith("# ")


def test_the_bodies_of_commands_are_short():
    for node in (*modules()["cli.model_commands"].body, *modules()["cli.run_commands"].body):
        if isinstance(node, ast.FunctionDef):
            body = [
                statement for statement in node.body if not isinstance(getattr(statement, "value", None), ast.Constant)
            ]
            assert body[-1].end_lineno - body[0].lineno < 18, node.name


def test_nothing_is_printed_by_the_library():
    for name, tree in modules().items():
        if room(name) != "cli":
            called = {
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert "print" not in called, name


@pytest.mark.parametrize(
    "code", ["import featx", "import featx.cli.commands", "from featx.cli.commands import app; app(['--help'])"]
)
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


def test_completing_loads_nothing_heavy():
    script = f"""
import os, sys
os.environ.update(_FEATX_COMPLETE="complete_bash", COMP_WORDS="featx info resnet50.", COMP_CWORD="2")
from featx.cli.commands import app
try:
    app(prog_name="featx")
except SystemExit:
    print([module for module in {(*HEAVY, "pydantic")} if module in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "resnet50.a1_in1k" in done.stdout
    assert done.stderr.strip() == "[]"


# What one can still read at a sitting: lines of a module, and of a function without its signature and docstring.
MODULE_LINES, FUNCTION_LINES = 350, 50


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"
