# What a person names, before it is walked: a file, a folder, a pattern or an archive, here or behind a URL.
"""Looking at inputs."""

from __future__ import annotations

import glob
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from featx import paths
from featx.errors import UnreadableError, UsageError
from featx.images import archives, locators, remote, tables, webdataset
from featx.images.walking import (
    ANY_FOLDERS,
    ARCHIVES,
    Pattern,
    has_archive_suffix,
    has_image_suffix,
    without_suffix,
)
from featx.paths import absolute, is_url, is_web, path_text, without_query
from featx.text import listed as in_words


@dataclass(frozen=True, slots=True)
class Input:
    """An input before it is walked.

    Attributes
    ----------
    text : str
        As it was written.
    path : str
        The file, or the folder in which to begin.
    name : str
        The file's key, or what comes first in those of a folder's images; nothing for a shard.
    pattern : Pattern or None
        What is wanted of the folder; None for a file.
    column : str
        The column that holds images, if these are rows of tables.
    """

    text: str
    path: str
    name: str
    pattern: Pattern | None = None
    column: str = ""


def looked_at(text: str) -> list[Input]:
    """Look at an input, or at all that it stands for.

    Raises
    ------
    UsageError
        As `_existing`.
    """
    if webdataset.is_of_shards(text) and not os.path.lexists(paths.expanded(text)):
        return [replace(_existing(shard), name="") for shard in webdataset.expanded(text)]
    path, column = _column_of(text) or (text, "")
    one = _existing(path)
    if column:
        return [replace(one, text=text, column=column)]
    if one.pattern is None and tables.is_table(one.path) and not archives.split(one.path):
        raise UsageError(f"{one.text} is a table", f"Name its column of images, as in {one.text}::image")
    return [one]


def _column_of(text: str) -> tuple[str, str] | None:
    """Take a text apart that names tables, or a folder of them, and their column; None if it is another input."""
    path, mark, column = text.rpartition(tables.MARK)
    if not mark or os.path.lexists(text):
        return None
    if tables.is_table(path):
        return path, column
    if archives.split(text) or not path:
        return None
    if is_url(path):
        require_usable(path)
        with suppress(FileNotFoundError, UnreadableError):
            return (path, column) if remote.is_folder(path) else None
    return (path, column) if Path(paths.expanded(path)).is_dir() else None


def _existing(text: str) -> Input:
    """Look at an input: an existing file or folder is taken by its name, even if that looks like a pattern.

    Raises
    ------
    UsageError
        If it neither exists nor is a pattern, or is recognised as something other than an image.
    """
    if not text:
        raise UsageError("An input is empty", "Leave it out, or give . for the current folder")
    if is_url(text):
        return _remote(text)
    path = Path(paths.expanded(text))
    absolute(str(path))  # which raises if the current folder is gone
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - to have the reason of a failure
    except (OSError, ValueError) as error:
        if found := archives.split(str(path)):
            return Input(text, str(path), member_key(*found))
        if glob.has_magic(text):
            return _patterned(text, path)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            hint = "Check the path; quote patterns, so that featx expands them"
            raise UsageError(f"There is no file or folder {text}", hint) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{text} cannot be read: {reason}", "Check the path") from error
    if is_folder:
        return Input(text, str(path), _own_name(path), Pattern())
    if not (has_image_suffix(path.name) or has_archive_suffix(path.name) or tables.is_table(path.name)):
        _require_image(text, str(path))
    return Input(text, str(path), path.name)


def _require_image(text: str, path: str) -> None:
    """Refuse a file that is recognised as something else; an unknown one fails when it is decoded."""
    what = locators.recognised(path)
    hints = {
        "archive": f"featx reads {in_words(ARCHIVES, 'and')}; unpack others, and give their folder",
        "video": "Extract frames from it, with ffmpeg for example, and give their folder",
        "file": f"If it is a list of images, give it with --from-file {text}",
    }
    if hint := hints.get(what.split(" ")[-1]):
        raise UsageError(f"{text} is {what}, not an image", hint)


def _patterned(text: str, path: Path) -> Input:
    """Take a pattern apart: its first folders, up to the first wildcard, are where its keys begin."""
    fixed, parts = Path(), list(path.parts)
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(fixed / parts[0])):
        fixed /= parts.pop(0)
    wanted: list[str] = []
    for part in parts:
        if part != os.pardir or wanted[-1:] == [ANY_FOLDERS]:
            wanted.append(part)
        elif wanted:
            wanted.pop()  # back out of a folder that is not linked
        else:
            fixed /= part
    return Input(text, str(fixed), _own_name(fixed), Pattern(wanted, folders_only=text.endswith("/")))


def _remote(text: str) -> Input:
    """Look at a URL; errors are those of `_existing`."""
    require_usable(text)
    if found := archives.split(text):
        return Input(text, text, member_key(*found))
    shown, url = path_text(text), text.rstrip("/")
    if glob.has_magic(shown.split("/")[2]):
        raise UsageError(f"{shown} has wildcards in the name of the bucket or server", "Give that name in full")
    has_wildcards = re.search(r"[*[]" if is_web(text) else r"[*?[]", without_query(text)) is not None
    if has_wildcards and is_web(text):
        return _remote_pattern(shown)
    hint = "Check the URL, and the credentials that fsspec finds"
    try:
        if remote.is_folder(text):
            return Input(shown, url, _own_name(_path_in(url)), Pattern())
    except FileNotFoundError as error:
        if has_wildcards:
            return _remote_pattern(shown)
        raise UsageError(f"There is no file or folder {shown}", hint) from error
    except UnreadableError as error:
        raise UsageError(f"{shown} cannot be read: {error.reason}", hint) from error
    return Input(shown, text, _path_in(text).name)


def _remote_pattern(url: str) -> Input:
    """Take a pattern of URLs apart; see `_patterned`."""
    start, slashes, path = url.partition("://")
    fixed, *parts = path.split("/")
    while parts and not glob.has_magic(parts[0]):
        fixed += f"/{parts.pop(0)}"
    folder = f"{start}{slashes}{fixed}"
    return Input(
        url, folder, _own_name(_path_in(folder)), Pattern([part for part in parts if part], folders_only=url[-1] == "/")
    )


def _path_in(url: str) -> PurePosixPath:
    """Return a URL's server or bucket, and the path in it, as names have them."""
    path = without_query(url).partition("://")[2]
    return PurePosixPath(paths.unquoted(path) if is_web(url) else path)


def require_usable(url: str) -> None:
    """Refuse a URL that cannot be read, whatever it refers to.

    Raises
    ------
    FeatxError
        If it has credentials in it or names nothing, or its protocol needs a library.
    """
    paths.require_plain_url(url)
    remote.require(url)


def listed_key(line: str, here: str) -> str:
    """Turn a path of a list into a key: relative to here if it lies below, else in full; never upwards."""
    place, member = archives.split(line) or (line, "")
    if is_url(line):
        require_usable(line)
        place = f"/{_path_in(place)}"
        return os.path.normpath(_inside(place, member) if member else place).lstrip(os.sep)
    line = _inside(place, member) if member else place
    path = os.path.normpath(line)
    if path.startswith((os.sep, os.pardir)):
        path = absolute(line).removeprefix(f"{here.rstrip(os.sep)}{os.sep}")
    return path.lstrip(os.sep)


def _own_name(folder: PurePath) -> str:
    """Return what a folder puts in front of its images' keys: its name, or nothing for ``.``, ``..`` and ``/``."""
    return f"{folder.name}/" if folder.name not in ("", os.pardir) else ""


def member_key(archive: str, name: str) -> str:
    """Name a member, or the whole archive or table, as its key does."""
    file = (_path_in(archive) if is_url(archive) else Path(archive)).name
    return _inside(file, name) if name else file


def _inside(file: str, name: str) -> str:
    """Return the path that a member would have if its archive or table were a folder."""
    if tables.is_table(file):
        return f"{tables.without_suffix(file)}/{name.rpartition(tables.MARK)[2]}"
    return f"{without_suffix(file)}/{name}"
