"""Owns `install-service` and `uninstall-service`: the systemd unit, where it lies, and what to type next."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..ipc import launch
from ..ipc.errors import InvalidArgument
from ..ipc.paths import APP, default_runtime_dir
from .session import config_of, print_json

MARK = "# Written by `morgan-background install-service`; `uninstall-service` removes it."
CREDENTIAL = "qdrant_api_key"
WATCHDOG_S = 30  # six times the loop's longest wait
STOP_SLACK_S = 20  # of TimeoutStopSec above grace_s: the store owner closes, the last copy of the results is written
CPU_WEIGHT = 20  # of 100: SCHED_IDLE counts within a cgroup only, and against others its weight does

SHARED_RULES = ("NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes")
SYSTEM_RULES = (
    "CapabilityBoundingSet=",
    "PrivateTmp=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictNamespaces=yes",
    "SystemCallArchitectures=native",
)
"""Known to be harmless here. Left out: MemoryDenyWriteExecute (torch makes code at run time), ProtectControlGroups (the
delegated cgroup is for us), ProtectClock and PrivateDevices (no GPU), filters on @resources (affinity, nice)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a unit's text depends on. `user` is None for the unit of a user's own manager."""

    name: str
    command: tuple[str, ...]
    user: str | None
    grace_s: float
    environment: tuple[tuple[str, str], ...] = ()
    state_directory: str | None = None
    runtime_directory: str = APP
    api_key_file: Path | None = None


def install(args: argparse.Namespace) -> int:
    """Write the unit, or with --dry-run print it. Raises InvalidArgument for what cannot be installed like this."""
    folder, is_ours_to_write = _folder(args)
    if not args.dry_run and not is_ours_to_write and os.geteuid() != 0:
        raise InvalidArgument(f"{folder} is root's: run it with sudo, or with --user for a service of your own")
    text = unit(_plan(args))
    path = folder / f"{args.name}.service"
    if args.dry_run:
        print_json({"path": str(path), "unit": text}) if args.json else print(text, end="")
        return 0
    if path.exists() and not args.force:
        raise InvalidArgument(f"{path} is there already: --force replaces it")
    _write(path, text)
    systemctl = "systemctl --user" if args.user else "systemctl"
    after = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {args.name}"]
    if args.user:
        after.append("loginctl enable-linger   # so that it also runs while you are not logged in")
    variables = [] if args.user else [f"MORGAN_STATE_DIR=/var/lib/{args.name}", f"MORGAN_RUNTIME_DIR=/run/{args.name}"]
    if args.json:
        print_json({"path": str(path), "next": after, "environment": variables})
        return 0
    print(f"{path} is written. Next:\n")
    print("\n".join(f"    {line}" for line in after))
    if variables:
        print("\nApplications and the command line find this service by two variables:\n")
        print("\n".join(f"    export {line}" for line in variables))
    return 0


def uninstall(args: argparse.Namespace) -> int:
    """Remove a unit that `install` wrote and that is not enabled any more."""
    folder, is_ours_to_write = _folder(args)
    path = folder / f"{args.name}.service"
    systemctl = "systemctl --user" if args.user else "systemctl"
    if not path.is_file():
        raise InvalidArgument(f"{path}: no such unit")
    if MARK not in path.read_text(errors="replace"):
        raise InvalidArgument(f"{path} is not one that install-service wrote: it stays")
    if any(folder.glob(f"*.wants/{args.name}.service")):
        raise InvalidArgument(f"it is enabled: `{systemctl} disable --now {args.name}` first")
    if not is_ours_to_write and os.geteuid() != 0:
        raise InvalidArgument(f"{folder} is root's: run it with sudo")
    path.unlink()
    words = f"{path} is removed; next: {systemctl} daemon-reload"
    print_json({"message": words}) if args.json else print(words)
    return 0


def _folder(args: argparse.Namespace) -> tuple[Path, bool]:
    """Return where units lie, and whether it is not root's alone."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", args.name):
        raise InvalidArgument(f"--name {args.name!r}: letters, digits, - and _, at most 64")
    if args.unit_dir:
        return Path(args.unit_dir), True
    if args.user:
        home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return Path(home) / "systemd" / "user", True
    return Path("/etc/systemd/system"), False


def _plan(args: argparse.Namespace) -> Plan:
    config = config_of(args)  # a wrong one is refused here, not at the first start
    options = ["--config", str(Path(args.config).absolute())] if args.config else []
    environment = [("PYTHONPATH", path)] if (path := _missing_path()) else []
    state_dir = config.state_dir().absolute()
    if args.user:
        # StateDirectory= of a user's manager is below ~/.config before systemd 254: the folder clients look in is named
        environment.append(("MORGAN_STATE_DIR", str(state_dir)))
    elif args.state_dir or args.runtime_dir:
        raise InvalidArgument("a system service has its folders in /var/lib and /run: --name chooses them")
    return Plan(
        name=args.name,
        command=(*launch.command("", "serve"), *options),
        user=None if args.user else _user(args.run_as),
        grace_s=config.service.grace_s,
        environment=tuple(environment),
        state_directory=None if args.user else args.name,
        # the name that clients work out from the state directory by themselves
        runtime_directory=default_runtime_dir(state_dir, {"XDG_RUNTIME_DIR": "/"}).name if args.user else args.name,
        api_key_file=_api_key_file(args),
    )


def _user(named: str | None) -> str:
    """Return whom a system service runs as: who may open its sockets is the same user's applications."""
    name = named or os.environ.get("SUDO_USER") or ""
    if not name and os.geteuid() != 0:
        name = pwd.getpwuid(os.geteuid()).pw_name
    if not name or (name == "root" and not named):
        raise InvalidArgument("say by --run-as USER whose applications it serves: only that user's can reach it")
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        raise InvalidArgument(f"--run-as {name!r}: no such user") from None


def _api_key_file(args: argparse.Namespace) -> Path | None:
    if args.api_key_file:
        path = Path(args.api_key_file).absolute()
        if not path.is_file():
            raise InvalidArgument(f"--api-key-file {path}: no such file")
        return path
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    usual = (home if args.user else Path("/etc")) / APP / CREDENTIAL
    return usual if usual.is_file() else None


def _missing_path() -> str:
    """Return the folder this package is in where a Python that is started by systemd would not find it; else ""."""
    look = [sys.executable, "-c", f"import {launch.PACKAGE}"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = subprocess.run(look, cwd="/", env=env, stderr=subprocess.DEVNULL, check=False).returncode == 0
    return "" if found else launch.environment({})["PYTHONPATH"].split(os.pathsep)[0]


def unit(plan: Plan) -> str:
    """Return the unit's text. Pure."""
    service = [
        "Type=notify",
        f"ExecStart={' '.join(_quoted(word, is_command=True) for word in plan.command)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        *([f"User={plan.user}"] if plan.user else []),
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in plan.environment),
        "",
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=on-failure",
        "RestartSec=1",
        "# running tasks reach their next step and save a checkpoint; then the workers are killed",
        "KillMode=mixed",
        f"TimeoutStopSec={plan.grace_s + STOP_SLACK_S:g}",
        "",
        *([f"StateDirectory={plan.state_directory}", "StateDirectoryMode=0700"] if plan.state_directory else []),
        f"RuntimeDirectory={plan.runtime_directory}",
        "RuntimeDirectoryMode=0700",
        "# precomputed results are there: readers go on with them while the service restarts",
        "RuntimeDirectoryPreserve=restart",
        *([f"LoadCredential={CREDENTIAL}:{_escaped(str(plan.api_key_file))}"] if plan.api_key_file else []),
        "UMask=0077",
        "",
        "Delegate=cpu memory",
        f"CPUWeight={CPU_WEIGHT}",
        "# a worker that took too much memory is replaced; the service goes on",
        "OOMPolicy=continue",
        "",
        *SHARED_RULES,
        *(SYSTEM_RULES if plan.user else ()),
    ]
    return "\n".join(
        [
            MARK,
            "[Unit]",
            "Description=morgan-background: spends spare capacity on better retrieval",
            "After=network.target",
            "# five failed starts in five minutes: it stays down and `systemctl status` says so",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=5",
            "",
            "[Service]",
            *service,
            "",
            "[Install]",
            f"WantedBy={'multi-user.target' if plan.user else 'default.target'}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    """Return a text in which systemd finds no specifier. Raises InvalidArgument for one it cannot hold."""
    if any(ord(letter) < 32 for letter in text):
        raise InvalidArgument(f"{text!r} has a control character: a unit cannot name it")
    return text.replace("%", "%%")


def _quoted(word: str, *, is_command: bool = False) -> str:
    """Return one word as a unit's lists of words need it."""
    word = _escaped(word)
    if is_command:
        word = word.replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write(path: Path, text: str) -> None:
    """Write the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)  # whatever the umask: systemd warns of one that others cannot read
    os.replace(fresh, path)
