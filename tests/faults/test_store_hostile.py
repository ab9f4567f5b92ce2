"""The result store against other users, full memory, and files that are damaged or forged.

What could end a process by a signal runs in one of its own. One thing cannot be defended: a file that is truncated
after a reader mapped it (SIGBUS at the next touch). It takes the right to write the file; the store's own writer never
truncates one, it makes another.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morgan.background.ipc import layout
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore

LATER = 1e12
NOBODY = 65534
TEXTS = ("numbers", "uuids", "mixed", "empty", "large", "alias")
CAPACITY = 8


def made(text: str, ids: tuple[int | str, ...] = (1, 2), size: int = 10) -> ComputedResult:
    rows = len(ids)
    return ComputedResult(
        query_text=text,
        collection="docs",
        ids=ids,
        scores=np.ones(rows, "<f4").tobytes(),
        rerank_scores=np.ones(rows, "<f4").tobytes(),
        contents=("x" * size,) * rows,
        sources=("s",) * rows,
        metadata=({"n": 1},) * rows,
        embedding=np.ones(4, "<f4").tobytes(),
        candidates=ids,
        computed_at=1.0,
    )


def filled(path: Path) -> ResultStore:
    store = ResultStore(path, capacity=CAPACITY)
    one = "12345678-1234-5678-1234-567812345678"
    kinds: tuple[tuple[int | str, ...], ...] = ((1, 2), (one, one), (1, one, "text"), (), tuple(range(70)))
    for text, ids in zip(TEXTS[:-1], kinds, strict=True):
        store.put(made(text, ids), expires_at=LATER)
    (mixed,) = (entry for entry in store.entries() if entry.query_text == "mixed")
    assert store.put_alias(made("alias", kinds[2]), mixed, expires_at=LATER)
    return store


def ran(program: str, *arguments: object) -> None:
    """Run `program` in a process of its own; it ends without an error and by no signal."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)


# --- another user -----------------------------------------------------------------------------------------------------

STRANGER = """
import ctypes, mmap, os, sys
from pathlib import Path
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.store import ResultStore

path, uid = Path(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)

def refused(errors, call, *arguments):
    try:
        call(*arguments)
    except errors:
        return
    raise AssertionError(f"not refused: {call}")

reader = ResultReader(path, counters_dir=path.with_name("readers"))
for _ in range(4):
    assert reader.get("numbers", "docs").ids == (1, 2)
assert reader.get("none", "docs") is None
assert "not counted" in reader.problem, reader.problem

refused(PermissionError, open, path, "r+b")
refused(PermissionError, open, path, "wb")
refused(PermissionError, os.truncate, path, 0)
refused(PermissionError, os.unlink, path)
refused(PermissionError, os.rename, path, path.with_name("other"))
refused(PermissionError, os.chmod, path, 0o666)
refused((PermissionError, ResultStoreError), ResultStore, path)
fd = os.open(path, os.O_RDONLY)
refused(PermissionError, mmap.mmap, fd, 4096)

memory, words = reader._file._memory, reader._file.words
def write():
    memory[0:1] = b"x"
def write_word():
    words[0] = 1
refused(TypeError, write)
refused(TypeError, write_word)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
assert libc.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == -1  # the kernel's own word for it
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_reader_of_another_user_reads_and_cannot_alter_the_store() -> None:
    folder = Path(tempfile.mkdtemp(prefix="morgan-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        folder.chmod(0o755)
        (folder / "readers").mkdir(mode=0o700)
        store = filled(folder / "results")
        (folder / "results").chmod(0o644)
        before = (folder / "results").read_bytes()
        ran(STRANGER, folder / "results", NOBODY)
        assert (folder / "results").read_bytes() == before
        assert list((folder / "readers").iterdir()) == []
        store.close()
    finally:
        shutil.rmtree(folder)


def test_the_file_is_made_unwritable_and_unreadable_for_others(tmp_path: Path) -> None:
    store = filled(tmp_path / "results")
    assert (tmp_path / "results").stat().st_mode & 0o027 == 0
    assert (tmp_path / "results.lock").stat().st_mode & 0o077 == 0
    store.close()


# --- full memory ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[Path]:
    """A tmpfs of 2 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="morgan-test-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


FULL_MEMORY = """
import os, sys
from pathlib import Path
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore

folder = Path(sys.argv[1])
path, filler = folder / "results", folder / "filler"

def made(text, version=1, size=10):
    return ComputedResult(query_text=text, collection="docs", ids=(1,), scores=bytes(4), contents=("x" * size,),
                          sources=("",), metadata=({},), computed_at=float(version))

def full(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except ResultStoreError as error:
        assert "no room for" in str(error) and str(folder) in str(error), error
    else:
        raise AssertionError("there was room")
"""

AT_CREATION = """
filler.write_bytes(bytes(1536 * 1024))
full(ResultStore, path, capacity=8)
assert sorted(os.listdir(folder)) == ["filler", "results.lock"], os.listdir(folder)
assert ResultReader(path).get("a", "docs") is None
filler.unlink()
store = ResultStore(path, capacity=8)
store.put(made("a"), expires_at=1e12)
assert ResultReader(path).get("a", "docs")
store.close()
"""

AT_GROWTH = """
(folder / "readers").mkdir()
store = ResultStore(path, capacity=8)
for number in range(4):
    store.put(made(f"q{number}", size=200_000), expires_at=1e12)
reader, size = ResultReader(path, counters_dir=folder / "readers"), path.stat().st_size

def served(*texts):
    for text in texts:
        for _ in range(3):
            assert reader.get(text, "docs").computed_at == store.get(text, "docs").computed_at

served("q0", "q1", "q2", "q3")
for _ in range(3):
    full(store.put, made("q0", 2, size=250_000), expires_at=1e12)
    full(store.put, made("new", 2, size=250_000), expires_at=1e12)
    served("q0", "q1", "q2", "q3")
    assert store.get("q0", "docs").computed_at == 1 and store.get("new", "docs") is None
assert sorted(os.listdir(folder)) == ["readers", "results", "results.lock"]
store.put(made("new", 3), expires_at=1e12)  # what fits is taken
served("q0", "new")

# a new file finds no room, a new reader's counts neither
filler.write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize))
other = ResultReader(path, counters_dir=folder / "readers")
assert other.get("new", "docs").computed_at == 3
assert "not counted" in other.problem, other.problem
store.remove("q3", "docs")
store.close()
full(ResultStore, path, capacity=500)  # another capacity needs another file
assert reader.get("q0", "docs").computed_at == 1
assert path.stat().st_size == size
store = ResultStore(path, capacity=8)
assert store.rebuilt_because is None and len(store) == 4
store.put(made("new", 4), expires_at=1e12)
served("q0", "new")
store.close()
"""


@pytest.mark.parametrize("program", [AT_CREATION, AT_GROWTH], ids=["creation", "growth"])
def test_full_shared_memory_is_a_clear_error_and_what_was_stored_is_served(small: Path, program: str) -> None:
    ran(FULL_MEMORY + program, small)


GONE = """
import shutil
store = ResultStore(path, capacity=8)
for number in range(5):
    store.put(made(f"q{number}", size=200_000), expires_at=1e12)
shutil.rmtree(folder)
try:
    store.put(made("new", 2, size=500_000), expires_at=1e12)
except ResultStoreError as error:
    assert "cannot be made" in str(error), error
else:
    raise AssertionError("there is no folder")
assert store.get("q0", "docs").computed_at == 1
"""


def test_a_runtime_folder_that_was_deleted_is_a_clear_error_when_the_store_would_grow(tmp_path: Path) -> None:
    ran(FULL_MEMORY + GONE, Path(tempfile.mkdtemp(dir=tmp_path)))


# --- damaged and forged files -----------------------------------------------------------------------------------------

PROBE = """
import sys, traceback
from pathlib import Path
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.result import _NAMES
from morgan.background.ipc.store import ResultStore

TEXTS, CAPACITY = sys.argv[1].split(), int(sys.argv[2])

def touch(result):
    if result is None:
        return
    for name in _NAMES:
        try:
            getattr(result, name)
        except ResultStoreError:
            pass
    for call in (result.hits, result.fresh_metadata, result.__len__):
        try:
            call()
        except ResultStoreError:
            pass

def read(reader):
    for _ in range(3):
        for text in (*TEXTS, "none"):
            result = reader.get(text, "docs")
            touch(result)
            if result is not None:
                try:
                    reader.use_of(result)
                except ResultStoreError:
                    pass
            touch(reader.get_at(text, "docs", "", 5.0))

def made(text, size=10):
    return ComputedResult(query_text=text, collection="docs", ids=(9,), scores=bytes(4), contents=("x" * size,),
                          sources=("",), metadata=({},), computed_at=77.0)

def write(path, reader):
    store = ResultStore(path, capacity=CAPACITY)
    for entry in store.entries():
        touch(store.get(entry.query_text, entry.collection, entry.scope))
        store.make_stale(entry.query_text, entry.collection, entry.scope, 1.0)
    for text in TEXTS[1:]:
        store.put(made(text, 300_000), expires_at=1e12)  # moves to a larger file
        assert store.get(text, "docs").computed_at == 77, text
        assert reader.get(text, "docs").computed_at == 77, text
    store.invalidate_collection("docs")
    store.put(made(TEXTS[2]), expires_at=1e12)
    assert reader.get(TEXTS[1], "docs") is None
    assert reader.get(TEXTS[2], "docs").computed_at == 77
    store.close()
    again = ResultStore(path, capacity=CAPACITY)
    assert again.rebuilt_because is None, again.rebuilt_because
    again.close()

for line in sys.stdin:
    path = Path(line[:-1])
    try:
        reader = ResultReader(path)
        read(reader)
        write(path, ResultReader(path))
        read(reader)
    except BaseException:
        print(repr(traceback.format_exc()), flush=True)
    else:
        print("sound", flush=True)
"""

ANSWER_S = 30.0  # a reader that takes longer hangs


class Prober:
    """A process that reads and then writes the files it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROBE, " ".join(TEXTS), str(CAPACITY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, path: Path) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            self.process.kill()
            return "hangs"
        answer = self.process.stdout.readline()
        return answer.rstrip("\n") or f"ended with {self.process.wait()}"


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    found = Prober()
    yield found
    found.process.communicate()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a store with a record of every kind."""
    path = tmp_path_factory.mktemp("image") / "results"
    store = filled(path)
    store.close()
    return path.read_bytes()


def records(raw: bytes) -> list[tuple[int, int, int]]:
    """Return the slot, offset and length of each record."""
    words = memoryview(raw).cast("Q")
    found = []
    for slot in range(words[layout.W_SLOTS]):
        _, blocks, offset = layout.unpack_pointer(words[layout.index_word(slot) + 1])
        if blocks:
            found.append((slot, offset, blocks * layout.BLOCK))
    return found


def is_sound(prober: Prober, folder: Path, raw: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "results"
        path.write_bytes(raw)
        assert prober.ask(path) == "sound"


EXTREMES = (0, 1, 2, 255, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1, layout.MAGIC)
U32S = (0, 1, 7, 112, 4096, 2**31, 2**32 - 1)


def set_word(raw: bytearray, word: int, value: int) -> None:
    raw[8 * word : 8 * word + 8] = value.to_bytes(8, "little")


def flip_bits(raw: bytearray, rng: random.Random) -> None:
    slots = memoryview(bytes(raw)).cast("Q")[layout.W_SLOTS]
    _, offset, length = rng.choice(records(bytes(raw)))
    areas = [(0, 64), (8 * layout.W_GENERATIONS, 64), (layout.HEADER_BYTES, 16 * slots), (offset, length)]
    for _ in range(rng.randrange(1, 20)):
        start, size = rng.choice(areas)
        raw[start + rng.randrange(size)] ^= 1 << rng.randrange(8)


def extreme_words(raw: bytearray, rng: random.Random) -> None:
    slots = memoryview(bytes(raw)).cast("Q")[layout.W_SLOTS]
    for _ in range(rng.randrange(1, 6)):
        word = rng.choice([rng.randrange(8), layout.index_word(rng.randrange(slots)) + rng.randrange(2)])
        set_word(raw, word, rng.choice([*EXTREMES, rng.getrandbits(64), rng.getrandbits(40)]))


def all_ones(raw: bytearray, rng: random.Random) -> None:
    start = rng.choice([0, 16, 64, layout.HEADER_BYTES, layout.HEADER_BYTES + 16 * rng.randrange(32)])
    end = start + rng.choice([8, 64, 4096, len(raw)])
    raw[start:end] = b"\xff" * (min(end, len(raw)) - start)


def no_free_slot(raw: bytearray, rng: random.Random) -> None:
    words = memoryview(bytes(raw)).cast("Q")
    for slot in range(words[layout.W_SLOTS]):
        if not words[layout.index_word(slot)]:
            set_word(raw, layout.index_word(slot), rng.choice([1, rng.getrandbits(64) or 1]))


def wrong_slots(raw: bytearray, rng: random.Random) -> None:
    """Let entries trade their pointers, or one be two's, or all lie where they are not looked for."""
    words = memoryview(bytes(raw)).cast("Q")
    slots = [slot for slot, _, _ in records(bytes(raw))]
    way = rng.randrange(3)
    for slot, other in zip(slots, rng.sample(slots, len(slots)), strict=True):
        if way == 2:
            elsewhere = layout.index_word((slot + 7) % words[layout.W_SLOTS])
            set_word(raw, elsewhere, words[layout.index_word(slot)])
            set_word(raw, layout.index_word(slot), 0)
            set_word(raw, elsewhere + 1, words[layout.index_word(slot) + 1])
        elif way == 0 or rng.random() < 0.4:
            set_word(raw, layout.index_word(slot) + 1, words[layout.index_word(other) + 1])


def forge_fields(raw: bytearray, rng: random.Random) -> None:
    """Change fixed fields of a record and compute its checksum anew."""
    for _, offset, length in rng.sample(records(bytes(raw)), rng.randrange(1, 4)):
        body = bytes(raw[offset + layout.CHECKSUM_BYTES : offset + length])
        first: dict[str, Any] = layout.first_of(body)._asdict()
        head: dict[str, Any] = layout.head_of(body)._asdict()
        for _ in range(rng.randrange(1, 4)):
            fields, name = rng.choice([(fields, name) for fields in (first, head) for name in fields])
            if isinstance(fields[name], float):
                fields[name] = rng.choice([0.0, -1.0, 1e300, float("inf"), float("nan")])
            else:
                fields[name] = rng.choice([*U32S, rng.randrange(600), fields[name] ^ 1])
        fixed = layout.FIRST.pack(*first.values()) + layout.REST.pack(*head.values())
        raw[offset : offset + length] = layout.sealed(fixed + body[layout.FIXED :])


def forge_texts(raw: bytearray, rng: random.Random) -> None:
    """Change the variable part of a record, key and texts included, and compute its checksum anew."""
    _, offset, length = rng.choice(records(bytes(raw)))
    body = bytearray(raw[offset + layout.CHECKSUM_BYTES : offset + length])
    first = layout.first_of(bytes(body))
    start = rng.choice([layout.FIXED, first.ids, first.texts, first.about])
    deep = b"\x93\x90\x90\x91\x81\xa1a" + b"\x91" * 5000
    fresh = rng.choice([rng.randbytes(20), b"\xdd\xff\xff\xff\xff", b"\x93\xdf\xff\xff\xff\xff", deep, b"\xc1" * 9])
    body[start : start + len(fresh)] = fresh[: len(body) - start]
    raw[offset : offset + length] = layout.sealed(bytes(body))


def forge_aliases(raw: bytearray, rng: random.Random) -> None:
    """Let aliases name any place and checksum, an entry's own as well, and any entry say that it is an alias."""
    words, found = memoryview(bytes(raw)).cast("Q"), records(bytes(raw))
    for slot, offset, length in found:
        body = bytes(raw[offset + layout.CHECKSUM_BYTES : offset + length])
        first, another = layout.first_of(body), rng.choice(found)
        place = layout.place_of(words[layout.index_word(another[0]) + 1])
        shared = bytes(raw[another[1] : another[1] + another[2]])
        if rng.random() < 0.3:
            place, shared = rng.choice([*EXTREMES, rng.getrandbits(40)]) & (2**40 - 1), rng.randbytes(8)
        if layout.is_alias(first):
            raw[offset : offset + length] = layout.moved_alias(body, place, shared)
        elif rng.random() < 0.3 and (forged := layout.pack_alias(bytes(raw[offset : offset + length]), place, shared)):
            raw[offset : offset + len(forged)] = forged
            set_word(raw, layout.index_word(slot) + 1, layout.pack_pointer(1, len(forged) // layout.BLOCK, offset))


def tiny_records(raw: bytearray, rng: random.Random) -> None:
    """Let pointers have no length or an end outside the file, and the words they point to a checksum that fits."""
    for slot, _, _ in records(bytes(raw)):
        offset = rng.choice([0, layout.BLOCK, len(raw) // layout.BLOCK * layout.BLOCK, layout.MAX_OFFSET])
        blocks = rng.choice([0, 1, layout.MAX_BLOCKS])
        set_word(raw, layout.index_word(slot) + 1, layout.pack_pointer(1, blocks, offset))
        if offset + 8 <= len(raw):
            body = bytes(raw[offset + layout.CHECKSUM_BYTES : offset + blocks * layout.BLOCK])
            raw[offset : offset + 8] = struct.pack("<Q", layout._digest(body))


DAMAGES = (
    flip_bits,
    extreme_words,
    all_ones,
    no_free_slot,
    wrong_slots,
    forge_fields,
    forge_texts,
    forge_aliases,
    tiny_records,
)
FUZZ = settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("damage", DAMAGES)
@FUZZ
@given(seed=st.integers(0, 2**32))
def test_no_damage_and_no_forgery_is_more_than_a_miss(
    prober: Prober, image: bytes, tmp_path: Path, damage: Any, seed: int
) -> None:
    raw = bytearray(image)
    damage(raw, random.Random(seed))
    is_sound(prober, tmp_path, bytes(raw))


@FUZZ
@given(length=st.one_of(st.integers(0, 20_000), st.integers(0, 2500).map(lambda n: 8 * n), st.integers(0, 1_056_000)))
def test_a_truncated_file_is_no_more_than_a_miss(prober: Prober, image: bytes, tmp_path: Path, length: int) -> None:
    is_sound(prober, tmp_path, image[:length])


def test_an_undamaged_file_is_read_by_the_same_probe(prober: Prober, image: bytes, tmp_path: Path) -> None:
    is_sound(prober, tmp_path, image)
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        path = Path(name) / "results"
        path.write_bytes(image)
        reader = ResultReader(path)
        assert [reader.get(text, "docs") is not None for text in TEXTS] == [True] * len(TEXTS)


def test_the_probe_reports_a_file_that_it_could_not_use(prober: Prober, tmp_path: Path) -> None:
    assert "FileNotFoundError" in prober.ask(tmp_path / "no folder" / "results")
