# Notes: what may surprise the user about a call.
"""Notes for the user, before the work begins."""

from __future__ import annotations

from collections.abc import Collection

from featx.engine.resources import LARGEST_BATCH
from featx.engine.setting import Setting
from featx.images import plugins, sources
from featx.requests import Job
from featx.runs import formats
from featx.runs.planning import Plan
from featx.text import count_of, images


def _in_small_batches(setting: Setting) -> bool:
    """Whether earlier calls for few images keep this one from using larger batches."""
    free = setting.earlier and not setting.job.batch_size and setting.job.fit != "native"
    return bool(free) and setting.workers.batch_size < LARGEST_BATCH < len(setting.plan.to_do)


def surprises(setting: Setting, suspected: Collection[bytes]) -> list[str]:
    """What may surprise the user about a call that continues earlier ones."""
    plan, workers = setting.plan, setting.workers
    texts = []
    if setting.done_again:
        again = f"Computing {images(setting.done_again)} again, so that all are computed"
        texts.append(f"{again} in batches of {workers.batch_size}")
    elif _in_small_batches(setting):
        texts.append(
            f"Batches of {workers.batch_size}, as in earlier calls; larger ones may be faster, "
            "but need --overwrite to start from scratch"
        )
    texts += of_plan(plan)
    if setting.earlier and setting.basis and setting.job.fit_on:
        texts.append("The run keeps the components that it has: --fit-on changes nothing")
    if suspected:
        names = ", ".join(sorted(mark.decode(errors="replace") for mark in suspected))
        texts.append(f"An earlier call ended while reading {names}: images are now decoded in separate processes")
    return texts


def of_plan(plan: Plan) -> list[str]:
    """What may surprise the user about the images of a call."""
    texts = []
    if plan.known_as:
        key, earlier = next(iter(plan.known_as.items()))
        texts.append(
            f"{images(len(plan.known_as))} already in the run under another key, not computed again: "
            f"{key} is stored as {earlier}"
        )
    if plan.gone:
        texts.append(f"{images(plan.gone)} no longer {'exists' if plan.gone == 1 else 'exist'}; the features are kept")
    return texts


def remarks(found: sources.Found, job: Job) -> list[str]:
    """What was skipped."""
    texts = []
    if found.others:
        texts.append(f"Skipped {count_of(found.others, 'file')} without an image suffix")
    if found.unread:
        texts.append("Skipped {}; {}".format(*plugins.counted(found.unread)))
    if found.unfollowed:
        texts.append(f"Skipped {count_of(found.unfollowed, 'linked folder')}")
    if found.unpacked:
        texts.append(f"Skipped {count_of(found.unpacked, 'archive')} beside a folder of the same name")
    if found.closed:
        texts.append(f"Skipped {count_of(found.closed, 'unreadable folder')}")
    if found.repeated:
        example = ": {} is stored as {}".format(*found.example) if found.example else ""
        texts.append(f"{images(found.repeated)} named more than once, processed once{example}")
    if formats.vectors_only(job.format) and job.maps is None:
        texts.append(f"No maps are kept: {job.format} holds only {'vectors of boxes' if job.boxes else 'embeddings'}")
    return texts
