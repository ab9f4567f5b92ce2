"""The systemd unit: its text, what systemd-analyze says of it, where it goes, and what is refused."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from morgan.background.cli.install import STOP_SLACK_S, Plan, unit
from morgan.background.cli.parser import main
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.paths import default_runtime_dir
from tests.conftest import own_environment

ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An environment in which nothing of this machine's user is found or written."""
    with own_environment(tmp_path):
        yield tmp_path


def cli(*arguments: str, code: int = 0, **env: str) -> str:
    """Run the command line in this process; return what it prints: to stderr where it is to fail."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in env.items():
            patch.setenv(name, value)
        assert main(arguments) == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


def lines_of(text: str) -> dict[str, list[str]]:
    """Return a unit's values by key."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def plan(**fields: Any) -> Plan:
    fixed: dict[str, Any] = {"name": "m", "command": ("/usr/bin/python3", "-m", "x"), "user": "ann", "grace_s": 10.0}
    return Plan(**(fixed | fields))


def test_the_unit_keeps_what_the_service_promises() -> None:
    found = lines_of(unit(plan(state_directory="m", runtime_directory="m")))
    assert found["Type"] == ["notify"]
    assert found["ExecStart"] == ["/usr/bin/python3 -m x"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert (found["User"], found["WantedBy"]) == (["ann"], ["multi-user.target"])
    assert (found["KillMode"], found["Restart"], found["Delegate"]) == (["mixed"], ["on-failure"], ["cpu memory"])
    assert (found["StateDirectory"], found["RuntimeDirectory"]) == (["m"], ["m"])
    assert (found["RuntimeDirectoryPreserve"], found["RuntimeDirectoryMode"]) == (["restart"], ["0700"])
    assert int(found["WatchdogSec"][0]) > 0
    assert "LoadCredential" not in found


def test_nothing_in_it_forbids_what_the_service_needs() -> None:
    keys = lines_of(unit(plan())).keys()
    forbidden = {"MemoryDenyWriteExecute", "ProtectControlGroups", "RemoveIPC", "ProcSubset", "PrivateDevices"}
    assert not keys & (forbidden | {"SystemCallFilter", "RestrictAddressFamilies", "ProtectClock", "Nice"})


@pytest.mark.parametrize("grace_s", [0.0, 10.0, 600.0])
def test_systemd_waits_longer_than_the_workers_may_take(grace_s: float) -> None:
    (stop_s,) = lines_of(unit(plan(grace_s=grace_s)))["TimeoutStopSec"]
    assert float(stop_s) == grace_s + STOP_SLACK_S


def test_a_users_unit_has_no_user_and_no_state_directory_of_systemd() -> None:
    found = lines_of(unit(plan(user=None, environment=(("MORGAN_STATE_DIR", "/home/a b/s"),))))
    assert not found.keys() & {"User", "StateDirectory", "CapabilityBoundingSet"}
    assert (found["WantedBy"], found["Environment"]) == (["default.target"], ['"MORGAN_STATE_DIR=/home/a b/s"'])


def test_words_that_systemd_would_read_otherwise_are_quoted() -> None:
    words = ("/opt/a b/python", "--config", '/etc/100%/$HOME/a"b\\c', "plain")
    (line,) = lines_of(unit(plan(command=words)))["ExecStart"]
    assert line == '"/opt/a b/python" --config "/etc/100%%/$$HOME/a\\"b\\\\c" plain'
    with pytest.raises(InvalidArgument, match="control character"):
        unit(plan(command=("/usr/bin/python3", "a\nb")))


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here: Debian's package systemd has it")
@pytest.mark.parametrize("options", [(), ("--user",)], ids=["system", "user"])
def test_systemd_analyze_finds_nothing_wrong(options: tuple[str, ...], home: Path) -> None:
    key = home / "key 100%"
    key.write_text("secret")
    # root would be an odd choice for a service, and is who may run the tests; systemd only checks the syntax
    who = () if options else ("--run-as", getpass.getuser())
    cli("install-service", *options, *who, "--unit-dir", str(home), "--api-key-file", str(key))
    path = home / "morgan-background.service"
    command = [str(ANALYZE), *options, "verify", str(path)]
    done = subprocess.run(
        command,
        env=os.environ | {"XDG_RUNTIME_DIR": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_dry_run_prints_the_unit_and_writes_nothing(home: Path) -> None:
    printed = cli("install-service", "--user", "--dry-run")
    found = lines_of(printed)
    command = shlex.split(found["ExecStart"][0])
    assert command == [sys.executable, "-m", "morgan.background", "serve"]
    assert found["Environment"][-1] == f"MORGAN_STATE_DIR={os.environ['MORGAN_STATE_DIR']}"
    document = json.loads(cli("install-service", "--user", "--dry-run", "--json"))
    assert document["unit"] == printed
    assert not Path(document["path"]).exists()


def test_a_clients_own_default_is_where_a_users_service_has_its_sockets(home: Path) -> None:
    state, runtime = str(home / "s"), str(home / "run")
    found = lines_of(cli("install-service", "--user", "--dry-run", "--state-dir", state))
    client = default_runtime_dir(Path(state), {"XDG_RUNTIME_DIR": runtime})
    assert f"{runtime}/{found['RuntimeDirectory'][0]}" == str(client)


def test_it_is_written_once_replaced_by_force_and_removed(home: Path) -> None:
    there = ("--unit-dir", str(home / "units"), "--name", "mb-test", "--user")
    said = cli("install-service", *there)
    path = home / "units" / "mb-test.service"
    assert path.stat().st_mode & 0o777 == 0o644
    assert "systemctl --user daemon-reload" in said
    assert "systemctl --user enable --now mb-test" in said
    before = path.read_text()
    config = home / "other.toml"
    config.write_text("[service]\ngrace_s = 99\n")
    assert "--force replaces it" in cli("install-service", *there, "--config", str(config), code=2)
    assert path.read_text() == before
    cli("install-service", *there, "--config", str(config), "--force")
    found = lines_of(path.read_text())
    assert found["TimeoutStopSec"] == [f"{99 + STOP_SLACK_S}"]
    assert shlex.split(found["ExecStart"][0])[-2:] == ["--config", str(config)]
    wants = path.parent / "default.target.wants"
    wants.mkdir()
    (wants / path.name).symlink_to(path)
    assert "systemctl --user disable --now mb-test" in cli("uninstall-service", *there, code=2)
    (wants / path.name).unlink()
    assert "systemctl --user daemon-reload" in cli("uninstall-service", *there)
    assert not path.exists()
    assert "no such unit" in cli("uninstall-service", *there, code=2)


def test_somebody_elses_unit_is_not_removed(home: Path) -> None:
    path = home / "ssh.service"
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert "it stays" in cli("uninstall-service", "--name", "ssh", "--unit-dir", str(home), code=2)
    assert path.exists()


def test_the_key_of_a_server_becomes_a_credential(home: Path) -> None:
    dry = ("install-service", "--user", "--dry-run")
    assert "LoadCredential" not in cli(*dry)
    usual = Path(os.environ["XDG_CONFIG_HOME"]) / "morgan-background" / "qdrant_api_key"
    usual.parent.mkdir(parents=True)
    usual.write_text("secret\n")
    printed = cli(*dry)
    assert lines_of(printed)["LoadCredential"] == [f"qdrant_api_key:{usual}"]
    assert "secret" not in printed
    named = home / "key"
    named.write_text("secret\n")
    assert lines_of(cli(*dry, "--api-key-file", str(named)))["LoadCredential"] == [f"qdrant_api_key:{named}"]
    assert "no such file" in cli(*dry, "--api-key-file", str(home / "none"), code=2)


def test_whose_applications_it_serves_is_said_by_name_or_known_from_sudo(home: Path) -> None:
    dry, me = ("install-service", "--dry-run"), getpass.getuser()
    assert lines_of(cli(*dry, "--run-as", me))["User"] == [me]
    assert "no such user" in cli(*dry, "--run-as", "nobody-of-this-name", code=2)
    if me == "root":
        assert "--run-as USER" in cli(*dry, code=2, SUDO_USER="")
        assert "--run-as USER" in cli(*dry, code=2, SUDO_USER="root")
    else:
        assert lines_of(cli(*dry, SUDO_USER=""))["User"] == [me]
    somebody = next(one.pw_name for one in pwd.getpwall() if one.pw_uid != 0)
    assert lines_of(cli(*dry, SUDO_USER=somebody))["User"] == [somebody]


NOT_ROOT = """
import os
from argparse import Namespace
from morgan.background.cli.install import install
from morgan.background.ipc.errors import InvalidArgument
if os.geteuid() == 0:
    os.setuid(65534)
try:
    install(Namespace(name="m", unit_dir=None, user=False, dry_run=False))
except InvalidArgument as error:
    print(error)
"""


def test_without_root_a_system_service_is_refused_in_words() -> None:
    command = [sys.executable, "-c", NOT_ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "run it with sudo, or with --user" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-x", "a.service", "x" * 65])
def test_a_name_that_is_no_name_of_a_unit_is_refused(name: str, home: Path) -> None:
    assert "letters, digits" in cli("install-service", "--dry-run", "--user", f"--name={name}", code=2)


def test_a_wrong_configuration_is_refused_before_anything_is_written(home: Path) -> None:
    config = home / "c.toml"
    config.write_text("[service]\ngrace_s = 'long'\n")
    said = cli("install-service", "--user", "--unit-dir", str(home), "--config", str(config), code=2)
    assert "service.grace_s" in said
    assert list(home.glob("*.service")) == []
