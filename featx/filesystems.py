# File systems behind URLs, by fsspec: one for all threads of a process where it can be, and what is missing by name.
"""What reads and writes ``s3://bucket/name`` and other URLs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from featx.errors import FeatxError, UsageError, first_line
from featx.paths import is_web, protocol_of

# Seconds that a web server may take to be reached, and to send something.
CONNECT, ANSWER = 10, 20

# What the libraries call an object's version.
VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum")

# The libraries of protocols that fsspec does not bring itself.
LIBRARIES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "http": "aiohttp",
}
LIBRARIES |= {"https": LIBRARIES["http"], "abfss": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}


def file_system(url: str) -> Any:
    """Return the file system of a URL: one for all threads of this process, or where that cannot be, for this thread.

    Raises
    ------
    FeatxError
        If a library for it is missing, its protocol is unknown, or its settings are wrong.
    """
    protocol = protocol_of(url)
    start = f"{protocol}://" if is_web(url) else f"{protocol}://{url.partition('://')[2].partition('/')[0]}"
    system = _shared(start, os.getpid())
    if system.async_impl or system.protocol == "memory":
        return system
    return type(system)(**system.storage_options)  # fsspec keeps one for each thread


def path_in(url: str) -> str:
    """Return the path of a URL in its file system, without a slash at its end."""
    path: str = file_system(url)._strip_protocol(url)  # noqa: SLF001 - what fsspec's own functions call
    return path.rstrip("/")


def version_in(facts: Mapping[str, Any]) -> str:
    """Return the version of an object, as its store or server tells it; empty where it does not."""
    return next((str(facts[name]) for name in VERSIONS if facts.get(name)), "")


@lru_cache
def _shared(start: str, process: int) -> Any:
    """Make a file system for a process; what its threads share does not survive a fork."""
    del process
    protocol = protocol_of(start)
    if find_spec("fsspec") is None:
        raise FeatxError(f"{protocol}:// needs fsspec, which is not installed", "Run `pip install 'featx[remote]'`")
    import fsspec

    if protocol not in fsspec.available_protocols():
        raise UsageError(f"There is no protocol {protocol}", "fsspec knows s3, gs, https, hf and others")
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        if is_web(start) and "client_kwargs" not in fsspec.config.conf.get(protocol, {}):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=ANSWER)
            }
        return fsspec.core.url_to_fs(start, **options)[0]
    except ImportError as error:
        raise FeatxError(
            f"{protocol}:// needs a library: {first_line(error)}",
            "Run `" + f"pip install 'featx[remote]' {LIBRARIES.get(protocol, '')}".strip() + "`",
        ) from error
    except Exception as error:
        raise FeatxError(f"{protocol}:// cannot be opened: {first_line(error)}", "Check fsspec's settings") from error
