# The version of featx, and those of the libraries that numbers depend on: recipes and summaries carry them.
"""Read by the build, too."""

from __future__ import annotations

__version__ = "0.1.0"


def library_versions(library: str, backend: str) -> dict[str, str]:
    """Return the versions that the numbers of a library's models depend on, when run by a backend."""
    more = {"ultralytics": ("ultralytics", "opencv-python"), "openvino": ("openvino",)}
    names = ("torch", "torchvision", "timm", "pillow", *more.get(library, ()), *more.get(backend, ()))
    return {"featx": __version__, **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    """Return the version of a library; OpenCV may be installed without what draws windows."""
    from importlib import metadata  # takes a while, and most of those who import this file want one string

    if name == "opencv-python":
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            name = "opencv-python-headless"
    return metadata.version(name)
