"""Owns where files live: the state directory (survives a reboot) and the runtime directory (tmpfs, sockets, results)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

APP = "morgan-background"


def default_state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return MORGAN_STATE_DIR, else systemd's STATE_DIRECTORY, else XDG state, else ~/.local/state."""
    for name in ("MORGAN_STATE_DIR", "STATE_DIRECTORY"):
        if value := env.get(name):
            return Path(value.split(":")[0])
    root = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / APP


def default_runtime_dir(state_dir: Path, env: Mapping[str, str] = os.environ) -> Path:
    """Return MORGAN_RUNTIME_DIR, else systemd's RUNTIME_DIRECTORY, else a folder of this state directory's own.

    The last is named after the state directory, so that two services of one user never share a socket. It lies in
    XDG_RUNTIME_DIR or /dev/shm, both tmpfs, and stays short: a Unix socket path holds 107 bytes.
    """
    for name in ("MORGAN_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        if value := env.get(name):
            return Path(value.split(":")[0])
    import hashlib  # late, as tempfile: a service that is told its folder does without them and their 1 MB

    tag = hashlib.blake2b(str(state_dir.absolute()).encode(), digest_size=6).hexdigest()
    if root := env.get("XDG_RUNTIME_DIR"):
        return Path(root) / f"{APP}-{tag}"
    shm = Path("/dev/shm")
    if not (shm.is_dir() and os.access(shm, os.W_OK)):
        import tempfile

        shm = Path(tempfile.gettempdir())
    return shm / f"{APP}-{os.getuid()}-{tag}"


def make_private(folder: Path) -> Path:
    """Create `folder` with mode 0700 if it is missing. Raises ConfigError if it is not a directory of this user's.

    The check is of the folder itself, not of what a link points to: in /dev/shm anybody may have made the name first.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not a directory owned by uid {os.getuid()}: remove it or configure another")
    return folder


class RuntimePaths:
    """The files inside one runtime directory."""

    def __init__(self, runtime_dir: Path) -> None:
        self.root = runtime_dir
        self.clients = runtime_dir / "clients.sock"  # applications -> supervisor
        self.workers = runtime_dir / "workers.sock"  # workers <-> supervisor
        self.owner = runtime_dir / "owner.sock"  # applications and workers -> store owner
        self.results = runtime_dir / "results"  # the result store
        self.readers = runtime_dir / "readers"  # one counter file a reader
        self.board = runtime_dir / "board"  # control words of the workers
        self.lock = runtime_dir / "lock"  # held by the supervisor while it lives
