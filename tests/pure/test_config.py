"""Configuration: what is found where, what is refused and in which words. Files are real, the environment is passed in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.errors import ConfigError
from morgan.background.ipc.settings import GateSettings, RecencySettings, TuningSettings
from morgan.background.supervisor.config import (
    RANGES,
    SECTIONS,
    Collection,
    Config,
    as_environment,
    default_toml,
    load,
    search_path,
)
from morgan.background.supervisor.governor import Limits, cpu_limit_permille

ROOT = Path(__file__).parents[2]
EMPTY = {"HOME": "/nonexistent"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def refusal(path: Path | None = None, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, EMPTY | env)
    return str(caught.value)


def test_without_a_file_the_numbers_of_the_specification_hold() -> None:
    config = load(env=EMPTY)
    assert config.source is None
    assert config.limits() == Limits(300, 700, 800, 9, 18, 22, 6)
    assert (config.cache.ttl_hours, config.cache.max_cached_queries, config.service.check_interval_s) == (24, 1000, 300)
    assert config.schedule.collections == ("morgan_knowledge", "morgan_memories", "morgan_web_content", "morgan_code")
    assert (config.queue_policy().max_kills, config.reranker.max_queries, config.workers() >= 1) == (3, 50, True)


def test_the_printed_default_file_is_the_defaults(tmp_path: Path) -> None:
    found = load(written(tmp_path, default_toml()), EMPTY)
    assert {name: getattr(found, "limits_" if name == "limits" else name) for name in SECTIONS} == {
        name: kind() for name, kind in SECTIONS.items()
    }
    assert found.collections == Config().collections


def test_the_documented_table_is_every_key_with_its_default_and_range() -> None:
    rows = re.findall(r"^\| `([a-zA-Z_.]+)` \| `(.*?)` \| (.*?) \|", (ROOT / "docs/configuration.md").read_text(), re.M)
    documented = {key: json.loads(default) for key, default, _ in rows}
    sections = {**SECTIONS, "collections.NAME": Collection}
    actual = {f"{s}.{k}": getattr(kind(), k) for s, kind in sections.items() for k in kind.__struct_fields__}
    assert documented == json.loads(json.dumps(actual))
    ranges = {key: f"{low:g} to {high:.0f}" for key, (low, high) in RANGES.items()}
    assert {key: words for key, _, words in rows if key in RANGES} == ranges


def test_the_named_file_goes_before_the_variable_before_the_home_before_etc(tmp_path: Path) -> None:
    home = tmp_path / "morgan-background" / "config.toml"
    home.parent.mkdir()
    home.write_text("[service]\nworkers = 3\n")
    named = written(tmp_path, "[service]\nworkers = 2\n")
    env = EMPTY | {"XDG_CONFIG_HOME": str(tmp_path)}
    assert (load(env=env).service.workers, load(env=env).source) == (3, home)
    assert load(env=env | {"MORGAN_CONFIG": str(named)}).service.workers == 2
    assert load(home, env | {"MORGAN_CONFIG": str(named)}).service.workers == 3
    assert [str(path) for path in search_path({"HOME": "/home/a"})] == [
        "/home/a/.config/morgan-background/config.toml",
        "/etc/morgan-background/config.toml",
    ]


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[limits]\nmemory_limit = 0.5\nactive_start = 8\n[schedule]\nauto = true\n")
    env = {"MORGAN_LIMITS_MEMORY_LIMIT": "0.6", "MORGAN_SCHEDULE_AUTO": "false", "MORGAN_SCHEDULE_COLLECTIONS": "a, b"}
    config = load(path, EMPTY | env)
    assert (config.limits_.memory_limit, config.limits_.active_start) == (0.6, 8)
    assert (config.schedule.auto, config.schedule.collections) == (False, ("a", "b"))


def test_folders_come_from_their_short_variables_and_a_tilde_is_home(tmp_path: Path) -> None:
    config = load(env=EMPTY | {"MORGAN_STATE_DIR": "/a/b", "MORGAN_RUNTIME_DIR": "/c"})
    assert (config.state_dir(), config.runtime_dir()) == (Path("/a/b"), Path("/c"))
    assert config.worker_settings().store.path == "/a/b/vectors"
    config = load(written(tmp_path, '[service]\nstate_dir = "~/m"\n[store]\npath = "~/v"\n'), EMPTY)
    assert config.state_dir() == Path.home() / "m"
    assert config.worker_settings().store.path == str(Path.home() / "v")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nmemory_limit = 1.5", ["limits.memory_limit", "1.5", "from 0 to 1"]),
        ("[limits]\nmemory_limit = nan", ["limits.memory_limit", "nan", "from 0 to 1"]),
        ("[limits]\nmemory_limit = true", ["limits.memory_limit", "True", "a number"]),
        ("[limits]\nmemory_limti = 0.5", ["limits.memory_limti", "did you mean 'memory_limit'"]),
        ("[limit]\nmemory_limit = 0.5", ["[limit]", "did you mean 'limits'"]),
        ("limits = 3", ["limits", "section", "3"]),
        ("[service]\nlog_level = 'loud'", ["service.log_level", "loud", "debug, info, warning, error"]),
        ("[service]\ntimezone = 'Mars/Olympus'", ["service.timezone", "Mars/Olympus", "IANA"]),
        ("[service]\nworkers = '2'", ["service.workers", "'2'", "a whole number from 0 to 256"]),
        ("[schedule]\ncollections = 'a'", ["schedule.collections", "'a'", "list"]),
        ("[limits]\nactive_end = 23", ["active_end", "23", "around the clock"]),
        ("[reranker]\ntop_k = 60", ["reranker.top_k", "reranker.candidates"]),
        ("[store]\nurl = 'localhost:6333'", ["store.url", "http"]),
        ("[service\n", ["TOML", "line 1"]),
        ("x = " + "[" * 5000, ["TOML"]),
        ("x = " + "1" * 5000, ["TOML"]),
    ],
)
def test_what_is_wrong_is_named_with_file_key_value_and_what_is_accepted(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = written(tmp_path, text)
    said = refusal(path)
    assert [word for word in [str(path), *words] if word not in said] == [], said


def test_a_named_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.toml")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "bytes.toml" in refusal(tmp_path / "bytes.toml")


def test_a_variable_is_named_where_it_is_wrong() -> None:
    assert refusal(MORGAN_LIMITS_MEMORY_LIMIT="lots").startswith("MORGAN_LIMITS_MEMORY_LIMIT")
    said = refusal(MORGAN_LIMITS_MEMORY_LIMTI="0.5")
    assert "MORGAN_LIMITS_MEMORY_LIMTI" in said
    assert "memory_limit" in said
    assert "None" not in refusal(MORGAN_LIMITS_ACTIVE_END="23")
    # what Kubernetes puts into the environment for a service called morgan is not ours
    assert load(env=EMPTY | {"MORGAN_SERVICE_PORT": "tcp://10.0.0.1:80", "MORGAN_SERVICE_HOST": "10.0.0.1"})


def test_a_key_is_read_from_a_file_a_variable_or_a_credential_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "qdrant_api_key"
    secret.write_text("s3cret\n")
    ways = [
        {"MORGAN_STORE_API_KEY_FILE": str(secret)},
        {"MORGAN_STORE_API_KEY_ENV": "QDRANT", "QDRANT": "s3cret"},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ]
    for env in ways:
        config = load(env=EMPTY | env)
        assert config.worker_settings().store.api_key.reveal() == "s3cret"
        assert "s3cret" not in repr(config) + repr(config.worker_settings())


def test_a_key_that_cannot_be_had_or_stands_in_the_wrong_place_is_refused_without_showing_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert "s3cret" not in refusal(written(tmp_path, "[store]\napi_key = 's3cret'"))
    assert "s3cret" not in refusal(written(tmp_path, "[store]\nurl = 'http://u:s3cret@host'"))
    assert "empty" in refusal(MORGAN_STORE_API_KEY_FILE=str(empty))
    assert "cannot be read" in refusal(MORGAN_STORE_API_KEY_FILE=str(tmp_path / "none"))
    assert "not set" in refusal(MORGAN_STORE_API_KEY_ENV="QDRANT")
    assert "set one of them" in refusal(MORGAN_STORE_API_KEY_ENV="A", A="x", MORGAN_STORE_API_KEY_FILE=str(empty))


def test_who_may_connect_is_named_by_a_user_of_this_machine_or_a_number(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[service]\nallowed_users = ["4711", "root"]\n'), EMPTY)
    assert config.allowed_uids() == {os.getuid(), 0, 4711}
    said = refusal(written(tmp_path, '[service]\nallowed_users = ["nobody-here"]\n'))
    assert "config.toml: service.allowed_users: 'nobody-here' must be a user of this machine, or a uid" in said


@given(st.tuples(*[st.integers(0, 23)] * 4))
def test_hours_that_are_accepted_have_a_limit_at_every_hour(hours: tuple[int, int, int, int]) -> None:
    names = ("ACTIVE_START", "ACTIVE_END", "QUIET_START", "QUIET_END")
    env = {f"MORGAN_LIMITS_{name}": str(hour) for name, hour in zip(names, hours, strict=True)}
    try:
        limits = load(env=EMPTY | env).limits()
    except ConfigError:
        return
    assert all(300 <= cpu_limit_permille(limits, half / 2) <= 700 for half in range(48))


def test_quiet_hours_may_end_as_the_active_ones_begin() -> None:
    limits = load(env=EMPTY | {"MORGAN_LIMITS_QUIET_START": "18", "MORGAN_LIMITS_QUIET_END": "9"}).limits()
    assert [cpu_limit_permille(limits, hour) for hour in (8.9, 9, 17.9, 18)] == [700, 300, 300, 700]


def test_a_configuration_reaches_another_process_through_its_environment(tmp_path: Path) -> None:
    text = "[service]\nworkers = 3\n[schedule]\nauto = false\ncollections = ['a', 'b']\n[limits]\nmemory_limit = 0.5\n"
    text += "[collections.notes]\ntext_field = 'body'\ntime_field = 'at'\nrecency_half_life_days = 14\n"
    config = load(written(tmp_path, text), EMPTY)
    again = load(env=EMPTY | as_environment(config))
    assert again == msgspec.structs.replace(config, source=None)
    assert as_environment(Config()) == {}


def test_a_default_config_needs_no_file_and_no_environment() -> None:
    assert Config().worker_settings().store.is_embedded


def test_the_gate_that_is_configured_is_the_one_workers_are_given(tmp_path: Path) -> None:
    text = "[gate]\nndcg_tolerance = 0.05\nmin_judged = 60\nrequire_judgments = true\n"
    gate = load(written(tmp_path, text), EMPTY).worker_settings().gate
    assert gate == GateSettings(ndcg_tolerance=0.05, min_judged=60, require_judgments=True)
    assert Config().worker_settings().gate == GateSettings()


def test_what_a_tune_aims_at_is_what_workers_are_given(tmp_path: Path) -> None:
    tuning = load(written(tmp_path, "[tuning]\nrecall_goal = 0.9\napply = true\n"), EMPTY).worker_settings().tuning
    assert tuning == TuningSettings(recall_goal=0.9, apply=True)
    assert Config().worker_settings().tuning == TuningSettings()


def test_a_collection_has_settings_of_its_own_under_its_name_and_its_versions(tmp_path: Path) -> None:
    text = "[model]\nsource_field = 'url'\n[collections.notes]\ntext_field = 'body'\ntime_field = 'at'\n"
    found = load(written(tmp_path, text + "recency_half_life_days = 14\nrecency_weight = 0.5\n"), EMPTY)
    assert sorted(found.collections) == ["morgan_memories", "notes"]
    for name in ("notes", "notes__v3"):
        own = found.worker_settings().of(name)
        assert (own.model.text_field, own.model.source_field) == ("body", "url")
        assert own.recency == RecencySettings(time_field="at", half_life_s=14 * 86400, weight=0.5)
    for name in ("docs", "notes__v", "notes__v3x", "other__v3"):
        assert found.worker_settings().of(name) is not None
        assert (found.worker_settings().of(name).model.text_field, found.worker_settings().of(name).recency) == (
            "text",
            None,
        )
    memories = found.worker_settings().collections["morgan_memories"]
    assert (memories.new_points, memories.recency_half_life_days) == (True, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[collections.notes]\ntext_feld = 'a'\n",
            "collections.notes.text_feld: unknown key; did you mean 'text_field'",
        ),
        ("[collections.notes]\nrecency_weight = 2\ntime_field = 'at'\n", "must be from 0 to 1"),
        ("[collections.notes]\nrecency_half_life_days = 2\n", "set time_field as well"),
        ("[collections]\nnotes = 3\n", "[collections.notes] must be a section, not 3"),
    ],
)
def test_a_wrong_setting_of_a_collection_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(written(tmp_path, text))


def test_settings_of_collections_in_a_variable_are_json(tmp_path: Path) -> None:
    found = load(env=EMPTY | {"MORGAN_COLLECTIONS": '{"morgan_memories": {"text_field": "said"}}'})
    assert (found.collections["morgan_memories"].text_field, found.collections["morgan_memories"].new_points) == (
        "said",
        False,
    )
    for wrong in ("{", "[]"):
        with pytest.raises(ConfigError, match="MORGAN_COLLECTIONS: "):
            load(env=EMPTY | {"MORGAN_COLLECTIONS": wrong})
