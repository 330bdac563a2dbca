# convert: a finished run in another format, image by image, without computing anything again.
"""``featx convert`` as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from featx import paths
from featx.engine.events import Checked
from featx.errors import ROOM, FeatxError, OutputError, UsageError
from featx.format_options import ConvertOptions
from featx.runs import basis, formats, layout, lock, manifest
from featx.runs.formats import Record, Stored, Writer
from featx.runs.garbage import collect_garbage
from featx.runs.known import Known, read_known
from featx.runs.manifest import Done, Failed
from featx.runs.reading import Run, open_run
from featx.runs.recorder import Recorder
from featx.runs.summary import SHARDS, read_summary, require_summary
from featx.values import Item, Outcome

# What a summary says of the calls that made the run, rather than of the run.
OF_CALLS = ("featx_format", "state", "counts", "bytes", "seconds", "call", SHARDS)

# Lines that are added to the manifest at once.
LINES = 10_000


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of converting.

    Attributes
    ----------
    output : Path
        The new run's folder.
    format : str
        Its format.
    done, failed : int
        Images in its manifest.
    converted : int
        Images that this call converted; earlier ones had converted the others.
    bytes : int
        Of the files that hold its outputs.
    """

    output: Path
    format: str
    done: int
    failed: int
    converted: int
    bytes: int


def convert(
    run: str | PathLike[str],
    output: str | PathLike[str],
    *,
    format: str,  # noqa: A002 - the option's name
    shard_mb: int | None = None,
    listener: Callable[[Checked], None] = lambda _: None,
) -> Converted:
    """Write a finished run in another format to a new folder; calling it again resumes where it stopped.

    The new run has the same arrays and recipe, apart from the format. The run itself is only read: each of its outputs
    is compared with its sha256 first.

    Parameters
    ----------
    run : path
        Folder of the run.
    output : path
        Folder of the new one.
    format : str
        One of those of ``featx extract``, or ``hdf5``.
    shard_mb : int or None
        Size of the tar files of ``webdataset``, in megabytes; None takes 500.
    listener : callable
        Called with the progress.

    Returns
    -------
    Converted
        What the new folder holds.

    Raises
    ------
    FeatxError
        If the run is not complete or damaged, the format cannot hold its arrays, or the folder holds something else.
    """
    asked = ConvertOptions(format=format, shard_mb=shard_mb)
    for path in (run, output):
        if paths.is_url(fspath(path)):
            raise UsageError(f"{path} is a URL, and runs are converted in folders", "Copy the run first")
    require_summary(run)
    source, target = Path(run), Path(output)
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--output: {target} lies in the run {source}", "Choose a folder outside it")
    with lock.shared(source):
        there = open_run(source, raw=True)
        _require_convertible(there, asked.format)
        with lock.exclusive(target) as held:
            return _Conversion(there, target, held, asked, listener).run()


def _require_convertible(run: Run, name: str) -> None:
    """Refuse a run that is not complete, and a format that cannot hold its arrays."""
    if run.summary["state"] != "done":
        raise FeatxError(f"The run {run.folder} is not complete", "Run its extract command again first")
    formats.require(name, run.fields)
    if formats.vectors_only(name) and any(field.dtype == "float16" for field in run.fields):
        raise UsageError(f"{name} holds float32, and the run float16", "Choose another --format")


class _Conversion:
    """The work on a locked folder."""

    def __init__(
        self,
        source: Run,
        output: Path,
        held: lock.LockedFolder,
        asked: ConvertOptions,
        listener: Callable[[Checked], None],
    ) -> None:
        self._source, self._output, self._held = source, output, held
        self._asked, self._listener = asked, listener
        summary = source.summary
        self._facts = {name: value for name, value in summary.items() if name not in OF_CALLS}
        self._facts["recipe"] = {**summary["recipe"], "format": asked.format}
        self._row = formats.FORMATS[asked.format]

    def run(self) -> Converted:
        """Convert what an earlier call has not."""
        earlier = read_summary(self._output)
        if earlier and {name: value for name, value in earlier.items() if name not in OF_CALLS} != self._facts:
            raise OutputError(f"{self._output} holds another run", "Choose another folder with --output")
        kept = self._kept() if earlier else {}
        left = [key for key in self._source if key not in kept]
        if left and self._row.at_once:
            left, kept = list(self._source), {}
        self._held.begin(from_scratch=not kept)
        writer = formats.writer(
            self._asked.format, self._output, self._held.unfinished, self._source.fields, None, self._asked.shard_mb
        )
        if digest := self._facts["recipe"]["basis"]:
            self._held.keep(basis.stored(self._source.folder, digest))
        if earlier:
            collect_garbage(writer, self._output, self._asked.format)
        failed = [line for line in self._failures() if line.key not in kept]
        done = [size for size in kept.values() if size >= 0]
        counts = (len(done), len(kept) - len(done), sum(done), len(left) + len(failed))
        recorder = Recorder(self._output, self._held, self._facts, *counts, None)
        recorder.save("running")
        try:
            self._convert(writer, recorder, left)
            recorder.enter([_outcome(line) for line in failed])
        except BaseException:
            with suppress(OutputError):  # the disk may be full, which is reported
                recorder.save("stopped")
            raise
        recorder.save("done")
        total = recorder.summary["counts"]
        return Converted(self._output, self._asked.format, total["done"], total["failed"], len(left), self._bytes())

    def _kept(self) -> dict[str, int]:
        """Find what an earlier call has converted: the bytes of each key's output; -1 of images that failed."""
        reader = formats.reader(self._asked.format, self._output)
        return {
            key: line.bytes if line.done else -1
            for key, line in read_known(self._output).items()
            if (not line.done and key in self._source.failed)
            or (key in self._source and reader.holds(key, line.output, line.bytes) and self._is_of(key, line))
        }

    def _bytes(self) -> int:
        """Add up the files, which have more than the arrays: 5 kB for an image's group in an HDF5 file."""
        outputs = {line.output for line in read_known(self._output).values() if line.done}
        names = formats.reader(self._asked.format, self._output).files(outputs)
        return sum((self._output / name).stat().st_size for name in names)

    def _is_of(self, key: str, line: Known) -> bool:
        """Whether the run still has what was converted, and has not made it again of another image."""
        return self._source.line(key).input == line.stat

    def _failures(self) -> Iterator[Failed]:
        last = {line.key: line for line in manifest.lines(self._source.folder) if isinstance(line, Failed)}
        return (line for key, line in last.items() if key in self._source.failed)

    def _convert(self, writer: Writer, recorder: Recorder, left: list[str]) -> None:
        """Write image by image, and commit as an extraction does."""
        group: list[tuple[str, Stored]] = []
        held = 0
        aliases = self._aliases()
        try:
            for number, key in enumerate(left, 1):
                group.append((key, writer.write(self._record(key, aliases.get(key, "")))))
                held += group[-1][1].bytes
                if len(group) >= writer.group or held > writer.room:
                    self._commit(writer, recorder, group)
                    group, held = [], 0
                self._listener(Checked(number, len(left)))
            self._commit(writer, recorder, group)
        except OSError as error:
            raise OutputError(f"{self._output} cannot be written: {error.strerror or error}", ROOM) from error

    def _record(self, key: str, alias: str) -> Record:
        """Read an image's arrays, and make sure of them: in the new run they would get a new sha256."""
        line = self._source.line(key)
        try:
            fault = self._source.reader.fault(line)
            arrays = {name: np.array(values) for name, values in self._source[key].items()}
        except (OSError, KeyError, ValueError) as error:
            fault = str(error)
        if fault:
            raise FeatxError(
                f"The output of {key} in {self._source.folder} is damaged: {fault}",
                "Run `featx verify --repair` on it, then the same extract command",
            )
        return Record(Item(key, line.path, alias), line.path, line.size, arrays)

    def _commit(self, writer: Writer, recorder: Recorder, group: list[tuple[str, Stored]]) -> None:
        outputs = writer.commit([stored for _, stored in group])
        made = [(key, stored, output) for (key, stored), output in zip(group, outputs, strict=True)]
        for start in range(0, len(made), LINES):
            recorder.enter(
                [
                    _outcome(self._source.line(key), output, stored.bytes, stored.sha256)
                    for key, stored, output in made[start : start + LINES]
                ]
            )

    def _aliases(self) -> dict[str, str]:
        """Give outputs that some file system would take for the same names of their own."""
        if self._row.shared:
            return {}
        taken: set[str] = set()
        aliases = {}
        for key in self._source:
            name = paths.fold(layout.output_of(key, self._row.suffix))
            if name in taken:
                aliases[key] = layout.output_of(key, self._row.suffix, apart=True)
            taken.add(name)
        return aliases


def _outcome(line: Done | Failed, output: str = "", size: int = 0, sha256: str = "") -> Outcome:
    """Make the outcome that an image's line records, with another output."""
    item = Item(line.key, str(paths.to_path(line.path)))
    if isinstance(line, Failed):
        return Outcome(item, line.input, stage=line.stage, error=line.error, messages=line.messages)
    return Outcome(
        item,
        line.input,
        size=line.size,
        frame=line.frame,
        output=output,
        bytes=size,
        sha256=sha256,
        levels=line.levels,
        pooled=line.pooled,
        boxes=line.boxes,
        messages=line.messages,
    )
