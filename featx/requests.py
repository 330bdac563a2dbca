# Requests: all options of a call together, and which of them contradict each other.
"""What a pyramid, or a run, is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featx.declaring import declared, group
from featx.errors import UsageError
from featx.options import (
    ImageOptions,
    KeepOptions,
    Limits,
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
    StoreOptions,
)


@group
class ModelRequest(ModelOptions, ImageOptions, KeepOptions, NetworkOptions):
    """Which pyramid somebody wants: all that its network, its weights and its arrays follow from."""

    def __post_init__(self) -> None:
        """Check and convert; maps are wanted unless they are said not to be."""
        super().__post_init__()
        if self.maps is None:
            object.__setattr__(self, "maps", True)
        require_consistent(self)


@group
class Job(ModelOptions, ImageOptions, KeepOptions, StoreOptions, OutputOptions, NetworkOptions, RunOptions, Limits):
    """One call of ``featx extract``: its images and all of its options.

    Attributes
    ----------
    inputs : tuple of str
        Files, folders and glob patterns.
    listed : tuple of str
        Paths out of lists (``--from-file``, standard input).
    """

    inputs: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check and convert."""
        super().__post_init__()
        require_consistent(self)

    @property
    def request(self) -> ModelRequest:
        """The pyramid that is wanted."""
        return ModelRequest(**{each.name: getattr(self, each.name) for each in declared(ModelRequest)})

    @property
    def limits(self) -> Limits:
        """What one image may take."""
        return Limits(**{each.name: getattr(self, each.name) for each in declared(Limits)})


_WITHOUT_MAPS = "maps were switched off (--no-maps)"


def _contradictions(asked: Any) -> Iterable[tuple[bool, str, str]]:
    """Yield what cannot go together: whether it was asked for, what is wrong, and the way out."""
    levels = asked.out_indices is not None or asked.strides is not None
    no_maps = asked.maps is False
    yield (
        asked.out_indices is not None and asked.strides is not None,
        ("--out-indices and --strides both choose the levels"),
        "Use one of them",
    )
    yield (
        asked.test_size and asked.image_size is not None,
        ("--image-size and --test-size both choose the input size"),
        "Use one of them",
    )
    yield asked.seed != 0 and asked.weights != "random", "--seed is for --weights random", "Leave out --seed"
    yield asked.pool is not None and not asked.embedding, "--pool needs --embedding", "Add --embedding"
    yield (
        no_maps and not asked.final and not asked.embedding,
        (f"Nothing is left to keep: {_WITHOUT_MAPS}"),
        "Add --embedding or --final",
    )
    yield no_maps and levels, f"Levels were chosen, but {_WITHOUT_MAPS}", "Leave out one of the two"
    yield (
        no_maps and (asked.norm or asked.prefix_tokens),
        (f"--norm and --prefix-tokens need levels, but {_WITHOUT_MAPS}"),
        "Leave out one of the two",
    )
    yield (
        getattr(asked, "dtype", "float32") != "float32" and no_maps and not asked.final,
        (f"--dtype is about maps, but {_WITHOUT_MAPS}"),
        "Leave out --dtype; embeddings are always float32",
    )


def require_consistent(asked: ModelRequest | Job) -> None:
    """Refuse options that contradict each other, for every command and function at this one place.

    Raises
    ------
    UsageError
        Naming the options, and the way out.
    """
    for wrong, what, hint in _contradictions(asked):
        if wrong:
            raise UsageError(what, hint)
