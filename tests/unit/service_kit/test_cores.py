import os

from service_kit.cores import available_cores, physical_cores


def test_a_cgroup_quota_bounds_the_cores(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/container\n")
    inner = tmp_path / "fs" / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    unlimited = available_cores(tmp_path / "fs", membership)
    assert unlimited >= 1
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert available_cores(tmp_path / "fs", membership) == 1
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    assert available_cores(tmp_path / "fs", membership) == 1
    (inner.parent / "cpu.max").write_text("99900000 100000\n")
    assert available_cores(tmp_path / "fs", membership) == unlimited


def test_without_cgroups_the_cores_are_those_of_the_machine(tmp_path):
    assert available_cores(tmp_path, tmp_path / "none") >= 1


def test_the_hardware_threads_of_a_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_cores(tmp_path) == min(2, available_cores())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4})
    assert physical_cores(tmp_path) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert physical_cores(tmp_path / "none") == min(2, available_cores())
