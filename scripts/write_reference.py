#!/usr/bin/env python3
# Writes what follows from the declarations of the options: the reference page, and the types that editors complete.
"""Write ``docs/reference.md`` and ``featx/__init__.pyi``; a test holds both equal to what this would write."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import typer

import featx
from featx.cli.commands import app

ROOT = Path(__file__).parent.parent
REFERENCE, STUB = ROOT / "docs" / "reference.md", ROOT / "featx" / "__init__.pyi"

HEAD = """# Reference

Every command and every option, written by `scripts/write_reference.py` from their declarations. The options have the
same names in Python: `--image-size 384` is `image_size=384` of `featx.extract` and `featx.load_pyramid`. Counts may be
abbreviated (`250k`, `30M`, `1.5G`), and sizes in bytes may have units (`500 kB`, `1.5GB`, `4GiB`).
"""

STUB_HEAD = """\
# The public names and their types, for editors; scripts/write_reference.py writes them from featx/options.py.
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal

from featx import ray as ray
from featx.engine.events import Listener
from featx.engine.extract import Report
from featx.errors import FeatxError as FeatxError
from featx.explore.patches import similar_patches as similar_patches
from featx.explore.similarity import similar as similar
from featx.models.pyramid import Pyramid
from featx.models.search import list_models as list_models
from featx.runs.reading import open_run as open_run

__version__: str
"""


def reference() -> str:
    """Return the text of the reference page."""
    group: Any = typer.main.get_command(app)
    return HEAD + "".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["featx", name, *(_argument(each) for each in arguments), "[OPTIONS]"])
    panels: dict[str, list[Any]] = {}
    for each in command.params:
        if each.param_type_name == "option" and not each.hidden:
            panels.setdefault(each.rich_help_panel, []).append(each)
    sections = [f"\n## featx {name}\n\n{inspect.cleandoc(command.help)}\n\n    {usage}\n"]
    if arguments:
        rows = (f"| {_code(_argument(each))} | {_cell(each.help or '')} |\n" for each in arguments)
        sections.append("\n| argument | |\n|---|---|\n" + "".join(rows))
    for panel, options in panels.items():
        sections.append(f"\n| {panel} | default | |\n|---|---|---|\n" + "".join(map(_option, options)))
    example = command.epilog.removeprefix("Example: ")
    return "".join(sections) + f"\nExample: `{example}`\n"


def _argument(each: Any) -> str:
    text = (each.metavar or each.name).upper() + ("…" if each.nargs == -1 else "")
    return text if each.required else f"[{text}]"


def _option(each: Any) -> str:
    spellings = ", ".join([*each.opts[::-1], *each.secondary_opts]) if each.secondary_opts else ", ".join(each.opts)
    value = f" {each.metavar}" if each.metavar else ""
    shown = each.show_default if isinstance(each.show_default, str) else "" if each.is_flag else each.default
    default = "required" if each.required else "" if shown in (None, False) else str(shown)
    return f"| {_code(spellings + value)} | {_cell(default)} | {_cell(each.help or '')} |\n"


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("\\[", "[").replace("|", "\\|").split())


def stub() -> str:
    """Return the text of the stub."""
    return STUB_HEAD + "".join(_function(function) for function in (featx.extract, featx.load_pyramid))


def _function(function: Any) -> str:
    signature = inspect.signature(function)
    lines, starred = [], False
    for each in signature.parameters.values():
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            lines.append("*")
        default = "" if each.default is inspect.Parameter.empty else f" = {_literal(each.default)}"
        lines.append(f"{each.name}: {each.annotation}{default}")
    body = textwrap.indent(f'"""{inspect.getdoc(function)}\n"""', "    ")
    parameters = "".join(f"    {line},\n" for line in lines)
    return f"\ndef {function.__name__}(\n{parameters}) -> {signature.return_annotation}:\n{body}\n"


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value!r}"


def main() -> None:
    """Write both files."""
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(reference())
    STUB.write_text(stub())


if __name__ == "__main__":
    main()
