# Plugins: formats that Pillow does not read by itself, and that featx's extras add.
"""HEIC, JPEG XL and slides: how they are recognised by name, and what to install for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from featx.errors import DecodeError
from featx.text import count_of


@dataclass(frozen=True, slots=True)
class Plugin:
    """A library that reads a format.

    Attributes
    ----------
    name : str
        Name of the format.
    suffixes : tuple of str
        Suffixes of its files.
    module : str
        What is imported to read them.
    extra : str
        The extra of featx that installs it.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    extra: str

    @property
    def is_installed(self) -> bool:
        """Whether files of the format can be read."""
        return find_spec(self.module) is not None

    def require(self) -> None:
        """Refuse a file of the format where the library is missing.

        Raises
        ------
        DecodeError
            With the command that installs it.
        """
        if not self.is_installed:
            raise DecodeError(f"{self.name} needs an extra: {_install([self])}")


HEIC = Plugin("HEIC", (".heic", ".heif", ".hif"), "pillow_heif", "heif")
JPEG_XL = Plugin("JPEG XL", (".jxl",), "pillow_jxl", "jxl")

# Scanners' own formats; a pyramid in a plain .tif is an image like any other.
SLIDES = Plugin("slide", (".svs", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".svslide"), "openslide", "slides")

BY_SUFFIX = {suffix: plugin for plugin in (HEIC, JPEG_XL, SLIDES) for suffix in plugin.suffixes}


def missing() -> dict[str, Plugin]:
    """Return the suffixes of files that cannot be read, each with the plugin that is missing."""
    return {suffix: plugin for suffix, plugin in BY_SUFFIX.items() if not plugin.is_installed}


def counted(unread: Mapping[Plugin, int]) -> tuple[str, str]:
    """Say how many files cannot be read, and what to do: ``3 HEIC files``, ``pip install … reads them``."""
    names = " and ".join(count_of(count, f"{plugin.name} file") for plugin, count in unread.items())
    return names, f"{_install(unread)} reads {'it' if sum(unread.values()) == 1 else 'them'}"


def _install(plugins: Iterable[Plugin]) -> str:
    return f"pip install 'featx[{','.join(plugin.extra for plugin in plugins)}]'"
