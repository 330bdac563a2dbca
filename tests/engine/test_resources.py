# Cores: what a process may run on, and what the control groups of a container leave of it.
from __future__ import annotations

import os

import pytest

from featx.engine import resources
from featx.engine.resources import cores

V2 = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
)
HYBRID = V1 + "34 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def _sixteen(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr("os.process_cpu_count", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("sys.platform", "linux")


@pytest.fixture
def machine(tmp_path):
    """Lay out /proc and /sys of a machine: what a process is told of its groups, and the quotas that they have."""

    def lay(groups, mounts, quotas):
        proc = tmp_path / "proc/self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text(groups)
        (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
        for name, text in quotas.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cores(tmp_path)

    return lay


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("10000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("", 16),
        ("nonsense", 16),
        ("200000", 16),
        ("200000 0\n", 16),
        ("-1 100000\n", 16),
        ("\xb2 \xb2", 16),
    ],
)
def test_a_container_sees_its_quota_at_the_root(machine, text, count):
    assert machine("0::/\n", V2.format(root="/"), {"cpu.max": text}) == count


def test_the_least_quota_of_a_group_and_those_above_it_counts(machine):
    quotas = {"a/cpu.max": "400000 100000", "a/b/cpu.max": "800000 100000", "other/cpu.max": "100000 100000"}
    assert machine("0::/a/b\n", V2.format(root="/"), quotas) == 4


def test_a_group_that_limits_itself_counts(machine):
    quotas = {"a/cpu.max": "max 100000", "a/b/cpu.max": "150000 50000"}
    assert machine("0::/a/b\n", V2.format(root="/"), quotas) == 3


def first_version(group, quota):
    """What a group of the first version has in its files: a quota of a tenth of a second."""
    return {f"{group}/cpu.cfs_quota_us": f"{quota}\n", f"{group}/cpu.cfs_period_us": "100000\n"}


def test_the_first_version_is_read_too(machine):
    quotas = {
        **first_version("cpu,cpuacct/docker/abc", 300_000),
        **first_version("cpu,cpuacct/docker", -1),
        **first_version("memory/docker/abc", 100_000),
    }
    groups = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:name=systemd:/docker/abc\n"
    assert machine(groups, V1.format(root="/"), quotas) == 3


def test_a_container_of_the_first_version_sees_its_own_part_and_the_outer_path(machine):
    quotas = first_version("cpu,cpuacct", 200_000)
    assert machine("3:cpu,cpuacct:/docker/abc\n", V1.format(root="/docker/abc"), quotas) == 2


def test_a_path_that_is_not_in_the_part_that_is_mounted_is_the_mount_itself(machine):
    quotas = {"cpu.max": "200000 100000"}
    assert machine("0::/outer/inner\n", V2.format(root="/elsewhere"), quotas) == 2


def test_a_hybrid_machine_has_its_quota_in_the_first_version(machine):
    quotas = {**first_version("cpu,cpuacct/job", 500_000), "unified/job/cgroup.procs": "1"}
    groups = "3:cpu,cpuacct:/job\n0::/job\n"
    assert machine(groups, HYBRID.format(root="/"), quotas) == 5


@pytest.mark.parametrize("groups", ["", "garbage", "0::\n", "x::/\n", "0::relative\n", ":::\n"])
@pytest.mark.parametrize("mounts", ["", "garbage - \n", V2.format(root="/"), "1 2 3 - cgroup2 x rw\n"])
def test_nothing_that_cannot_be_read_ends_a_run(machine, groups, mounts):
    assert machine(groups, mounts, {}) == 16


def test_without_proc_the_cores_are_those_of_the_process(tmp_path):
    assert cores(tmp_path / "nothing") == 16


def test_elsewhere_nobody_asks_for_control_groups(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr(resources.groups, "quotas", lambda _: pytest.fail("asked"))
    assert cores() in (16, 64)


def test_a_mount_may_have_blanks_in_its_name(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    (tmp_path / "proc/self/mountinfo").write_text(r"30 24 0:26 / /my\040groups rw - cgroup2 none rw" + "\n")
    (tmp_path / "my groups/a").mkdir(parents=True)
    (tmp_path / "my groups/a/cpu.max").write_text("200000 100000")
    assert cores(tmp_path) == 2
