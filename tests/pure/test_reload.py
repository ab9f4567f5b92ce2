"""What a changed configuration changes in a service that runs: each key of it either at once or at the next start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.settings import Secret
from morgan.background.supervisor.config import SECTIONS, Config
from morgan.background.supervisor.reload import API_KEY, LIVE, Changes, compared, in_words

ROOT = Path(__file__).parents[2]
KEYS = sorted(f"{name}.{key}" for name, kind in SECTIONS.items() for key in kind.__struct_fields__)


def field(section: str) -> str:
    return "limits_" if section == "limits" else section


def value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, field(section)), name)


def changed(config: Config, key: str) -> Config:
    """Return the configuration with another value at `key`."""
    section, _, name = key.partition(".")
    old = value(config, key)
    match old:
        case bool():
            new: Any = not old
        case str():
            new = old + "x"
        case tuple():
            new = (*old, "x")
        case _:
            new = old + 1
    held = msgspec.structs.replace(getattr(config, field(section)), **{name: new})
    return msgspec.structs.replace(config, **{field(section): held})


@given(keys=st.sets(st.sampled_from(KEYS)))
def test_what_may_change_does_and_the_rest_stays_as_it_runs(keys: set[str]) -> None:
    running = found = Config()
    for key in keys:
        found = changed(found, key)
    now, changes = compared(running, found)
    assert (set(changes.applied), set(changes.needs_restart)) == (keys & LIVE, keys - LIVE)
    assert {key for key in KEYS if value(now, key) != value(running, key)} == keys & LIVE
    assert all(value(now, key) == value(found, key) for key in keys & LIVE)
    # what needs a restart is said again at each reload, and no more once the file is as it was
    again, said = compared(now, found)
    assert (again, said) == (now, Changes((), changes.needs_restart))
    back, undone = compared(now, running)
    assert (back, undone.needs_restart) == (running, ())


def test_another_api_key_needs_a_restart_and_is_not_shown() -> None:
    running = msgspec.structs.replace(Config(), api_key=Secret("old-secret"))
    now, changes = compared(running, msgspec.structs.replace(Config(), api_key=Secret("new-secret")))
    assert changes == Changes((), (API_KEY,))
    assert now.api_key.reveal() == "old-secret"
    assert "secret" not in in_words(changes) + repr(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Changes((), ()), "nothing in force changed"),
        (Changes(("a.b", "c.d"), ()), "in force now: a.b, c.d"),
        (Changes((), ("e.f",)), "nothing in force changed; needs a restart: e.f"),
    ],
)
def test_changes_are_said_in_words(changes: Changes, words: str) -> None:
    assert in_words(changes) == words


def test_the_documented_keys_are_those_that_a_reload_changes() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text().partition("\n## Changing it while the service runs\n")[2]
    listed = re.findall(r"^- `([a-z_.*]+)`", text.partition("\n## ")[0], re.M)
    documented = {key for key in KEYS for one in listed if key == one or (one[-1] == "*" and key.startswith(one[:-1]))}
    assert documented == LIVE
