"""The documents against the code: messages, errors, commands, options, numbers and links; the examples are run."""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
import zmq
from msgspec import inspect
from qdrant_client import QdrantClient

from morgan.background.cli import parser as cli
from morgan.background.inline import InlineLane
from morgan.background.ipc import calls, events, launch, layout, messages, reader, sockets, wire
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import MorganError
from morgan.background.ipc.records import ComputedResult
from morgan.background.supervisor import requests as served
from morgan.background.supervisor.params import ACCEPTED
from morgan.background.supervisor.sections import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str, heading: str = "", *, is_deep: bool = False) -> str:
    """Return what stands below a heading of a document, up to the next one; `is_deep`: what is below that included."""
    text = (ROOT / "docs" / name).read_text()
    if not heading:
        return text
    level = len(heading.partition(" ")[0]) if is_deep else 6
    return re.split(rf"^#{{1,{level}}} ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.M)[0]


def table(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in `text` by what their first cell has in backticks."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.M)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- the protocol -----------------------------------------------------------------------------------------------------

NATIVE = {
    inspect.StrType: "str",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
    inspect.BytesType: "bin",
    inspect.DictType: "map",
    inspect.NoneType: "nil",
}


def type_words(of: inspect.Type) -> str:
    """Return a field's type as the protocol's document writes it."""
    match of:
        case inspect.UnionType() if all(_is_event(one) for one in of.types):
            return "Event"
        case inspect.UnionType():
            return " or ".join(type_words(one) for one in of.types)
        case inspect.VarTupleType():
            words = type_words(of.item_type)
            return f"list of ({words})" if " or " in words else f"list of {words}"
        case inspect.StructType() | inspect.EnumType():
            return of.cls.__name__
    return NATIVE[type(of)]


def _is_event(of: inspect.Type) -> bool:
    return isinstance(of, inspect.StructType) and issubclass(of.cls, events.Event)


def fields_of(kind: type[msgspec.Struct]) -> list[str]:
    """Return the fields of a message or record as `name: type = default`, less the envelope's."""
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    common = ("v", "rid") if issubclass(kind, messages.Message) else ("seq", "at")
    is_enveloped = issubclass(kind, messages.Message | events.Event)
    named = [one for one in found.fields if not (is_enveloped and one.name in common)]
    return [f"{one.encode_name}: {type_words(one.type)}{_default(one)}" for one in named]


def _default(one: inspect.Field) -> str:
    if one.required:
        return ""
    value = one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory()
    plain = {} if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
    return " = " + ("nil" if plain is None else json.dumps(plain))


def tag_of(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def kinds_in(kinds: Iterable[Any]) -> Iterator[type[Any]]:
    """Yield the records and enums that the fields of `kinds` are made of."""

    def inside(of: Any) -> Iterator[type[Any]]:
        if isinstance(of, inspect.StructType | inspect.EnumType):
            yield of.cls
        for part in getattr(of, "types", ()) or [getattr(of, "item_type", None)] if of else ():
            yield from inside(part)

    for kind in kinds:
        found = inspect.type_info(kind)
        assert isinstance(found, inspect.StructType)
        for field in found.fields:
            for one in inside(field.type):
                yield one
                if issubclass(one, msgspec.Struct):
                    yield from kinds_in([one])


GROUPS = {
    "## Requests": get_args(messages.Request),
    "## Replies": get_args(messages.Reply),
    "### Calls": get_args(calls.Call),
    "### Kinds of events": get_args(events.AnyEvent),
    "### Answers": [kind for kind in get_args(calls.Answer) if kind is not messages.Failure],
}
CROSSING = {
    kind for kind in kinds_in([one for group in GROUPS.values() for one in group]) if not issubclass(kind, events.Event)
}


@pytest.mark.parametrize("heading", GROUPS)
def test_the_protocol_lists_every_message_with_its_fields_types_and_defaults(heading: str) -> None:
    documented = {tag: spans(cells[0]) for tag, cells in table(page("protocol.md", heading)).items()}
    assert documented == {tag_of(kind): fields_of(kind) for kind in GROUPS[heading]}


def test_the_protocol_lists_every_record_and_value_that_messages_are_made_of() -> None:
    documented = {name: spans(cells[0]) for name, cells in table(page("protocol.md", "## Records")).items()}
    values = {kind.__name__: [one.value for one in kind] for kind in CROSSING if issubclass(kind, Enum)}
    records = {kind.__name__: fields_of(kind) for kind in CROSSING if issubclass(kind, msgspec.Struct)}
    assert documented == values | records


def test_the_parameters_of_each_task_type_are_listed() -> None:
    documented = {name: set(spans(cells[0])) for name, cells in table(page("protocol.md", "### Parameters")).items()}
    assert documented == {task_type.value: set(accepted) for task_type, accepted in ACCEPTED.items()}


def every_error(root: type[MorganError] = MorganError) -> Iterator[type[MorganError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def test_every_failure_code_is_listed_and_which_of_them_pass_by_themselves() -> None:
    documented = {code: cells[0] for code, cells in table(page("protocol.md", "## Failures")).items()}
    assert documented == {one.code: "yes" if one.is_transient else "no" for one in every_error()}


def test_the_documented_limits_are_those_in_force() -> None:
    documented = {name: cells[0] for name, cells in table(page("protocol.md", "## Limits")).items()}
    assert documented == {
        "request": f"{wire.MAX_CLIENT_BYTES // 1024} KiB",
        "call": f"{calls.MAX_CALL_BYTES // 2**20} MiB",
        "unread requests": f"{sockets.CLIENT_HIGH_WATER} a connection",
        "unread replies": f"{sockets.CLIENT_UNREAD} a connection",
        "handshake": f"{sockets.HANDSHAKE_MS / 1000:g} s",
        "rows": f"{served.MAX_ROWS} a list",
        "wait_s": f"{served.MAX_WAIT_S:g} s",
        "depth": f"{wire.MAX_DEPTH} levels",
        "path": f"{sockets.MAX_SOCKET_PATH} bytes",
    }


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InlineLane]:
    """The supervisor's core in this process, with one running task and one that waits for it."""
    monkeypatch.setenv("MORGAN_STATE_DIR", str(tmp_path))
    lane = InlineLane(QdrantClient(":memory:"), config=Config())
    for task_type in ("reindex", "warm"):
        lane.request(messages.Submit(task_type=task_type, collection="c", is_forced=True))
    yield lane
    lane.close()


RESULT = ComputedResult(
    query_text="q",
    collection="c",
    ids=(1,),
    scores=b"\0\0\0?",
    contents=("a",),
    sources=("b",),
    metadata=({},),
    computed_at=1.0,
)
GIVEN: dict[str, Any] = {
    "task_type": "warm",
    "collection": "c",
    "frequency": "daily",
    "query": "q",
    "document_id": "1",
    "relevance": 1.0,
    "result": RESULT,
    "vector": bytes(8),
    "orders": (),
}


def test_each_request_is_answered_with_the_documented_reply(lane: InlineLane) -> None:
    documented = {tag: spans(cells[1])[0] for tag, cells in table(page("protocol.md", "## Requests")).items()}
    (task_id, *_) = [one.task_id for one in expect(messages.TaskList, lane.request(messages.ListTasks())).tasks]
    answered = {}
    for kind in get_args(messages.Request):
        given = {one.name: GIVEN.get(one.name, task_id) for one in msgspec.structs.fields(kind) if one.required}
        if kind in (messages.RemoveSchedule, messages.MarkScheduleCompleted):
            added = messages.AddSchedule(task_type="warm", collection="c", frequency="daily")
            given["task_id"] = expect(messages.ScheduleList, lane.request(added)).schedules[0].task_id
        answered[tag_of(kind)] = tag_of(type(lane.request(kind(**given))))
    assert answered == documented


def keys_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for one in value.values() for key in keys_in(one)}
    return {key for one in value for key in keys_in(one)} if isinstance(value, list | tuple) else set()


@pytest.mark.parametrize("kind", ["status", "activity", "cache_stats", "execution_stats", "resources"])
def test_every_key_of_a_report_is_listed(lane: InlineLane, kind: str) -> None:
    lane.request(messages.Track(query="q", collection="c"))
    request = next(one for one in get_args(messages.Request) if tag_of(one) == kind)
    report = expect(messages.Report, lane.request(request())).report
    assert keys_in(report) <= set(spans(page("protocol.md", "## Reports", is_deep=True)))
    assert set(report) <= set(spans(page("protocol.md", f"### {kind}")))


HEX_AND_MAP = re.findall(r"```hex\n(.*?)```\n.*?```json\n(.*?)```", page("protocol.md"), re.S)


@pytest.mark.parametrize(("codec", "example"), list(zip([wire.requests, wire.replies] * 2, HEX_AND_MAP, strict=True)))
def test_the_bytes_of_the_worked_example_are_the_shown_map(codec: wire.Codec[Any], example: tuple[str, str]) -> None:
    frame, shown = bytes.fromhex(example[0]), json.loads(example[1])
    assert msgpack.unpackb(frame) == shown
    written = msgpack.unpackb(wire.encode(codec.decode(frame)))
    assert shown.items() <= written.items()  # a field that is not sent has its default


def asked_and_printed(command: list[str], folder: Path, lane: InlineLane) -> tuple[messages.Request, str]:
    """Run a program that asks one request; answer it over a socket in `folder`; return both."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    path = folder / "clients.sock"
    socket = sockets.bind_router(context, path, max_bytes=wire.MAX_CLIENT_BYTES, high_water=sockets.CLIENT_HIGH_WATER)
    command, env = [sys.executable, *command], launch.environment({})
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert socket.poll(60_000)
        identity, frame = socket.recv_multipart()
        request = wire.requests.decode(frame)
        reply = msgspec.structs.replace(lane.request(request), rid=request.rid)
        socket.send_multipart([identity, wire.encode(reply)])
        printed, _ = process.communicate(timeout=60)
    context.destroy(linger=0)
    assert process.returncode == 0
    return request, printed


def test_the_python_example_prints_what_the_service_answers(tmp_path: Path, lane: InlineLane) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page("protocol.md"), re.S)
    assert set(re.findall(r"^import (.*)$", code, re.M)) == {"sys", "msgpack", "zmq"}
    request, printed = asked_and_printed(["-c", code, str(tmp_path)], tmp_path, lane)
    assert isinstance(request, messages.Status)
    assert printed == "1 running, 1 waiting\n"


# --- the command line -------------------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what can be typed, without its options: (("tasks", "list"), its parser)."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, child in action.choices.items():
            yield from parsers(child, (*words, name))
    if not below:
        yield words, parser


COMMON = {"-h", "--help", "--config", "--state-dir", "--runtime-dir", "--json"}
LEAVES = dict(parsers(cli.build()))


def usage(words: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    shown = [*words]
    for action in parser._actions:
        meta = str(action.metavar or action.dest.upper())
        if not action.option_strings:
            shown.append(f"[{meta}]" if action.nargs == "?" else meta)
        elif not COMMON & set(action.option_strings):
            shown.append(f"[{action.option_strings[-1]}{'' if action.nargs == 0 else ' ' + meta}]")
    return " ".join(shown)


def test_the_command_page_shows_every_command_verb_and_option() -> None:
    shown = re.findall(r"^    morgan-background (.*)$", page("cli.md", "## Commands", is_deep=True), re.M)
    assert sorted(shown) == sorted(usage(words, parser) for words, parser in LEAVES.items())
    everywhere = {name for name, _ in re.findall(r"^\| `(--[a-z-]+)( [A-Z]+)?`", page("cli.md", "## Options"), re.M)}
    assert everywhere == (COMMON - {"-h"}) | {"--version"}


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_an_option_of_every_command_may_stand_behind_it(words: tuple[str, ...]) -> None:
    given = ["x" for action in LEAVES[words]._actions if not action.option_strings and action.nargs != "?"]
    behind = cli.build().parse_args([*words, *given, "--json", "--state-dir", "s"])
    before = cli.build().parse_args(["--json", "--state-dir", "s", *words, *given])
    assert behind == before
    assert (behind.json, behind.state_dir) == (True, "s")


def test_stop_prints_one_json_document_if_asked(tmp_path: Path, lane: InlineLane) -> None:
    command = launch.command("", "stop", "--json", "--runtime-dir", str(tmp_path))
    request, printed = asked_and_printed(command[1:], tmp_path, lane)
    assert isinstance(request, messages.Shutdown)
    assert set(json.loads(printed)) == {"message"}


def test_every_exit_code_is_documented_with_the_errors_that_lead_to_it() -> None:
    documented = {int(code): set(spans(cells[1])) for code, cells in table(page("cli.md", "## Exit codes")).items()}
    codes: dict[int, set[str]] = {
        code: set() for code in (cli.OK, cli.FAILED, cli.USAGE, cli.NO_SERVICE, cli.INTERRUPTED)
    }
    for one in every_error():
        codes[cli._complain(argparse.Namespace(json=False), one("x"))].add(one.code)
    assert documented == codes


# --- the other pages --------------------------------------------------------------------------------------------------


def numbers() -> Iterator[tuple[str, str]]:
    """Yield every module constant of the three folders that is a number: `folder/module.py NAME` and its source."""
    for path in sorted(path for folder in ("ipc", "supervisor", "workers") for path in (ROOT / folder).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                if node.targets[0].id.startswith("_"):
                    continue  # a detail of its module
                source = ast.unparse(node.value)
                is_arithmetic = re.fullmatch(r"[\de_.()*+/<,\- ]+", source) is not None
                if is_arithmetic:
                    yield f"{path.parent.name}/{path.name} {node.targets[0].id}", source


def test_every_number_has_a_reason() -> None:
    rows = table(page("design.md", "## Every number and its reason"))
    documented = {name: spans(cells[0])[0] for name, cells in rows.items()}
    assert documented == dict(numbers())


def diagram(docstring: str | None) -> str:
    """Return the indented part of a module's docstring, less its indentation."""
    lines = [line[4:] for line in (docstring or "").splitlines() if line.startswith("    ") or not line.strip()]
    return "\n".join(lines).strip()


def flow(docstring: str | None) -> str:
    """Return the lines with arrows of a module's docstring."""
    return "\n".join(line for line in (docstring or "").splitlines() if "─▶" in line)


@pytest.mark.parametrize("shown", [diagram(layout.__doc__), flow(reader.__doc__)], ids=["layout", "reader"])
def test_the_result_store_is_drawn_as_in_the_code(shown: str) -> None:
    assert f"```\n{shown}\n```" in page("design.md", "## The result store")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = []
    for target in links:
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        if not found.exists() or (anchor and anchor not in anchors(found.read_text())):
            missing.append(target)
    assert not missing


def anchors(text: str) -> set[str]:
    """Return the names under which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
