# Notes: what a person may not expect of a call, in words.
"""What is said before the work begins."""

from __future__ import annotations

from collections.abc import Collection

from featx.engine.resources import LARGEST_BATCH
from featx.engine.setting import Setting
from featx.images import sources
from featx.options import Job
from featx.runs import formats


def surprises(setting: Setting, suspected: Collection[bytes]) -> list[str]:
    """What a person may not expect, in words."""
    plan, workers = setting.plan, setting.workers
    texts = []
    if setting.done_again:
        texts.append(
            f"{_images(setting.done_again)} computed again, in batches of {workers.batch_size} like the new ones"
        )
    elif setting.earlier and not setting.job.batch_size and workers.batch_size < LARGEST_BATCH < len(plan.to_do):
        texts.append(
            f"Batches of {workers.batch_size}, as in the calls before; larger ones may be faster, "
            "and need --overwrite to start anew"
        )
    if plan.known_as:
        key, earlier = next(iter(plan.known_as.items()))
        texts.append(
            f"{_images(len(plan.known_as))} in the run under another key already, and not computed again: "
            f"{key} is stored as {earlier}"
        )
    if plan.gone:
        texts.append(f"{_images(plan.gone)} no longer there; the features are kept")
    if suspected:
        names = ", ".join(sorted(mark.decode(errors="replace") for mark in suspected))
        texts.append(f"An earlier call ended while reading {names}: images are read in processes of their own now")
    return texts


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


def remarks(found: sources.Found, job: Job) -> list[str]:
    """What was left out, in words."""
    once = ", such as {} as {}".format(*found.example) if found.example else ""
    remarks = (
        (found.others, "not called like images: ", " left out"),
        (found.unfollowed, "linked folders: ", " not followed"),
        (found.closed, "folders that cannot be read: ", ", their images are left out"),
        (found.repeated, "named more than once: ", f", each taken once{once}"),
    )
    left_out = [f"{what}{count}{then}" for count, what, then in remarks if count]
    if formats.vectors_only(job.format) and job.maps is None:
        left_out.append(f"{job.format} keeps vectors: no maps are written")
    return left_out
