"""Owns what can be harmed on this machine: a file system of the journal's own, a shim, a clock. Says what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

STATE_MIB = 48  # of the journal's file system: some MB are used
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2


@dataclass
class Means:
    """`missing`: fault -> why it cannot be had here. `notes`: which means a fault uses."""

    has_own_disk: bool = False
    shim: Path | None = None
    faketime: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def find(root: Path, faketime: Path | None = None) -> Means:
    """Mount and build what can be, in `root`. Call before any thread is started, and `remove` at the end."""
    found = Means()
    state = root / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if why := _mount(state):
        found.notes["journal_full"] = f"RLIMIT_FSIZE of the supervisor, for want of a file system of its own ({why})"
    else:
        found.has_own_disk = True
        found.notes["journal_full"] = f"a tmpfs of {STATE_MIB} MiB, filled"
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        found.missing["journal_io"] = "no C compiler for the LD_PRELOAD shim"
    else:
        shim = root / "eio.so"
        source = Path(__file__).with_name("eio.c")
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            found.missing["journal_io"] = f"the shim cannot be built: {built.stderr.strip()[-200:]}"
        else:
            found.shim = shim
            found.notes["journal_io"] = "an LD_PRELOAD shim that fails the journal's writes or syncs with EIO"
    found.faketime = faketime or next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if found.faketime is None:
        found.missing["clock"] = "libfaketime is not here: Debian's package libfaketime has it"
    else:
        found.notes["clock"] = "libfaketime; the wall clock alone is set"
    if importlib.util.find_spec("qdrant_client") is None:
        found.missing["qdrant_down"] = found.missing["qdrant_slow"] = "qdrant-client is not installed"
    else:
        note = "the embedded engine behind Qdrant's REST protocol (bench.fake_qdrant, no server), behind a proxy"
        found.notes["qdrant_down"] = found.notes["qdrant_slow"] = note
    return found


def remove(root: Path) -> None:
    """Remove the folder with everything in it, also what is mounted there."""
    ctypes.CDLL(None).umount2(bytes(root / "state"), _MNT_DETACH)  # an error is that nothing is mounted
    shutil.rmtree(root, ignore_errors=True)


def _mount(folder: Path) -> str:
    """Mount a tmpfs that only this process and its children see; return why that cannot be done, "" where it was."""
    libc = ctypes.CDLL(None, use_errno=True)
    steps: tuple[Callable[[], int], ...] = (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None),
        lambda: libc.mount(
            b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), f"size={STATE_MIB}m,mode=0700".encode()
        ),
    )
    is_done = all(step() == 0 for step in steps)
    return "" if is_done else os.strerror(ctypes.get_errno())
