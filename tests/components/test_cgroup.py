"""The workers' control group: planned from texts, made in a real v1 tree, and in a folder laid out as a delegated v2 one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from morgan.background.supervisor.cgroup import Place, WorkerGroup, in_force, places
from tests.conftest import CPU_TREE

MOUNTS = """\
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
V2_TREE = Path("/sys/fs/cgroup/unified")


def test_the_own_group_is_found_in_both_trees_and_the_better_one_is_first() -> None:
    groups = "4:cpu,cpuacct:/box\n2:memory:/box\n0::/system.slice/morgan.service\n"
    assert places(groups, MOUNTS) == [
        Place(Path("/sys/fs/cgroup/unified/system.slice/morgan.service"), is_v2=True),
        Place(Path("/sys/fs/cgroup/cpu/box"), is_v2=False),
    ]


def test_the_root_of_a_tree_is_nobodys() -> None:
    assert places("4:cpu,cpuacct:/\n0::/\n", MOUNTS) == []
    assert places("0::/a\n", "") == []


def test_a_worker_joins_a_real_group_and_the_group_goes_with_it(real_group: Path) -> None:
    group = WorkerGroup.open([Place(real_group, is_v2=False)])
    made = real_group / "morgan-workers"
    name, value = group.words.split()
    assert group.words == ("cpu.idle 1" if (made / "cpu.idle").exists() else "cpu.shares 2")
    assert (made / name).read_text().strip() == value
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        group.join(worker.pid)
        assert str(worker.pid) in (made / "cgroup.procs").read_text().split()
        assert in_force(worker.pid) == [f"cgroup morgan-workers: {group.words}"]
        if name == "cpu.shares":
            (made / name).write_text("512")  # what the kernel has counts, not what was written once
            assert in_force(worker.pid) == ["cgroup morgan-workers: cpu.shares 512"]
        again = WorkerGroup.open([Place(real_group, is_v2=False)])  # of a supervisor that was killed and started again
        assert again.words == group.words
        assert in_force(worker.pid) == [f"cgroup morgan-workers: {group.words}"]
        assert in_force(os.getpid()) == []
        worker.communicate(b"\n")
    assert in_force(worker.pid) == []
    group.join(worker.pid)  # it has ended: nothing happens
    assert group.words == again.words
    group.close()
    assert not made.exists()


MANY_MOUNTS = """
for i in $(seq 120); do
    point="$1/a_mount_point_with_a_long_name_$i"
    mkdir "$point" && mount -t tmpfs none "$point"
done
umount "$2" && mount -t cgroup -o cpu cgroup "$2"  # behind all others now
shift 2 && exec "$@"
"""
LAST_MOUNT = """
import os, pathlib, sys
from morgan.background.supervisor import cgroup
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
print([str(place.folder) for place in cgroup.own_places()])
"""


def test_a_group_is_found_behind_more_mounts_than_one_read_returns(real_group: Path, tmp_path: Path) -> None:
    there = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip("no mounts of our own may be made")
    command = [sys.executable, "-c", LAST_MOUNT, str(real_group)]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-ec", MANY_MOUNTS, "bash", str(tmp_path), str(CPU_TREE), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str([str(real_group)]), done.stderr


def test_a_process_outside_a_group_of_ours_has_no_words(real_group: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (real_group / "cgroup.procs").write_text(str(other.pid))
        assert in_force(other.pid) == []
        other.communicate(b"\n")


def test_a_group_that_vanishes_leaves_the_workers_niced(real_group: Path) -> None:
    group = WorkerGroup.open([Place(real_group, is_v2=False)])
    (real_group / "morgan-workers").rmdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        group.join(worker.pid)
        assert in_force(worker.pid) == [f"cgroup morgan-workers: {group.words}"]
        worker.communicate(b"\n")
    group.close()
    assert not (real_group / "morgan-workers").exists()


def test_a_group_that_cannot_be_made_again_leaves_the_workers_niced(
    real_group: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = WorkerGroup.open([Place(real_group, is_v2=False)])
    (real_group / "morgan-workers").rmdir()
    real_group.rmdir()  # all of the service's own
    group.join(os.getpid())
    group.join(os.getpid())
    assert group.words == ""
    assert caplog.text.count("of no use any more") == 1
    group.close()
    real_group.mkdir()


DIVIDES = """
import os, sys
from pathlib import Path
from morgan.background.supervisor import cgroup
own = Path(sys.argv[1])
(own / "cgroup.procs").write_text(str(os.getpid()))
try:
    cgroup._divide(own, [str(os.getpid())])
except OSError:
    print(sorted(path.name for path in own.iterdir() if path.is_dir()), str(os.getpid()) in (own / "cgroup.procs").read_text())
(own.parent / "cgroup.procs").write_text(str(os.getpid()))
"""


def test_in_a_real_v2_tree_without_the_controller_a_division_is_taken_back() -> None:
    if not os.access(V2_TREE, os.W_OK) or "cpu" in (V2_TREE / "cgroup.controllers").read_text().split():
        pytest.skip("no v2 tree, without the CPU controller, that may be written")
    folder = V2_TREE / f"morgan-test-{os.getpid()}"
    folder.mkdir()
    try:
        command = [sys.executable, "-c", DIVIDES, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == ("[] True\n", 0), done.stderr
    finally:
        folder.rmdir()


@pytest.fixture
def fake_v2_group(tmp_path: Path) -> Path:
    """Not a control group: a folder with the files of a delegated one."""
    folder = tmp_path / "morgan.service"
    for name in (folder, folder / "workers", folder / "supervisor"):
        name.mkdir()
        (name / "cgroup.procs").write_text("")
    (folder / "cgroup.controllers").write_text("cpu memory\n")
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (folder / "cgroup.subtree_control").write_text("")
    (folder / "workers" / "cpu.idle").write_text("0")
    try:
        os.setxattr(folder, "user.delegate", b"1")
    except OSError:
        pytest.skip("no extended attributes in the temporary folder")
    return folder


def test_a_delegated_group_is_split_into_a_leaf_for_us_and_one_for_the_workers(fake_v2_group: Path) -> None:
    group = WorkerGroup.open([Place(fake_v2_group, is_v2=True)])
    assert group.words == "cpu.idle 1"
    assert (fake_v2_group / "workers" / "cpu.idle").read_text() == "1"
    assert (fake_v2_group / "cgroup.subtree_control").read_text() == "+cpu"
    assert (fake_v2_group / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    group.join(77)
    assert (fake_v2_group / "workers" / "cgroup.procs").read_text() == "77"


def test_without_cpu_idle_the_weight_is_the_least(fake_v2_group: Path) -> None:
    (fake_v2_group / "workers" / "cpu.idle").unlink()
    (fake_v2_group / "workers" / "cpu.weight").write_text("100")
    assert WorkerGroup.open([Place(fake_v2_group, is_v2=True)]).words == "cpu.weight 1"
    assert (fake_v2_group / "workers" / "cpu.weight").read_text().startswith("1")


def test_a_group_that_others_are_in_is_left_alone(fake_v2_group: Path) -> None:
    (fake_v2_group / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    assert WorkerGroup.open([Place(fake_v2_group, is_v2=True)]).words == ""
    assert (fake_v2_group / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_is_not_ours_or_has_no_cpu_controller_is_left_alone(fake_v2_group: Path) -> None:
    (fake_v2_group / "cgroup.controllers").write_text("memory\n")
    assert WorkerGroup.open([Place(fake_v2_group, is_v2=True)]).words == ""
    os.removexattr(fake_v2_group, "user.delegate")
    (fake_v2_group / "cgroup.controllers").write_text("cpu\n")
    if os.getuid() == 0:
        assert WorkerGroup.open([Place(fake_v2_group, is_v2=True)]).words == ""
    assert (fake_v2_group / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_may_not_be_written_is_done_without(tmp_path: Path) -> None:
    assert WorkerGroup.open([Place(tmp_path / "gone", is_v2=False), Place(tmp_path / "gone", is_v2=True)]).words == ""
