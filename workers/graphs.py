"""Owns the ONNX graphs of models on disk, each with the verdict on it. Neither makes one nor runs one.

    <folder>/<key>.onnx            the transformer: token ids and mask to the last hidden state
    <folder>/<key>.tokenizer.json  the tokenizer as the reference has it
    <folder>/<key>.json            the verdict, which names the hashes of both: written last, without it they count for nothing

The key is a hash over the model's files and over the versions of all that reads or makes a graph, so what is found by it is
never another model's, and a new version of a library is judged anew. No torch is needed to know it.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import xxhash

from ..ipc.paths import make_private
from ..ipc.settings import ModelSettings
from .models import resolve

log = logging.getLogger(__name__)

FORMAT = 1  # of what is in these files: another one and every graph is exported again
READERS = ("onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers")
MAKING = "making-"  # begins the names of folders in which graphs are made


class Recipe(msgspec.Struct, frozen=True):
    """What turns token ids into the graph's inputs, and its output into a vector."""

    inputs: tuple[str, ...]  # of "input_ids", "attention_mask", "token_type_ids"
    pooling: tuple[str, ...]  # of "mean", "cls", "max": their vectors stand one behind the other
    size: int  # D, of a vector
    token_size: int  # of the hidden state
    max_tokens: int
    pad_id: int
    pad_token: str
    pad_type: int = 0
    activation: str = ""  # of a cross-encoder: the torch module that makes a score of its logit


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a graph may stand for its model, and what it was measured by."""

    model: str
    revision: str  # of the vectors: the reference's own, with "-int8" behind it where they are not its vectors
    precision: str
    is_adopted: bool
    reason: str = ""  # why not
    texts: int = 0  # compared
    least_cosine: float = 0.0
    mean_cosine: float = 0.0
    kind: str = "vectors"  # or "pairs": of a cross-encoder
    largest_difference: float = 0.0  # of a pair's scores
    recipe: Recipe | None = None
    graph_hash: str = ""
    tokenizer_hash: str = ""

    @property
    def of(self) -> tuple[str, str, str]:
        return self.model, self.precision, self.kind

    @property
    def words(self) -> str:
        """Return it for a log or `doctor`."""
        measured = f"cosine {self.least_cosine:.6f} at least, {self.mean_cosine:.6f} on average in {self.texts} texts"
        if not self.is_adopted:
            return self.reason
        if self.kind == "pairs":
            return f"the same scores: at most {self.largest_difference:.0e} apart in {self.texts} pairs"
        return f"{'8-bit weights' if self.precision == 'int8' else 'the same vectors'}: {measured}"


def folder_of(name: str) -> Path | None:
    """Return the folder a model is loaded from; None for a hub's model that is not on this disk. Raises ModelUnavailable."""
    target = Path(resolve(name))
    if target.is_dir():
        return target
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except (ImportError, OSError, ValueError):  # not there, not a hub's name; its errors derive from these
        return None


def key_of(settings: ModelSettings) -> str | None:
    """Return the key of the graph of a model as it is on disk now; None where it is not. Reads all of its files."""
    folder = folder_of(settings.name)
    if folder is None:
        return None
    parts = [str(FORMAT), settings.precision, platform.machine()]
    for package in READERS:
        with suppress(importlib.metadata.PackageNotFoundError):  # a worker of the fast path alone has no torch
            parts.append(f"{package} {importlib.metadata.version(package)}")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in inside.parts):
            parts.append(f"{inside} {_hash_of(path)}")
    return xxhash.xxh3_64_hexdigest("\n".join(parts).encode())


def _hash_of(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Graph:
    """The files of one key. `verdict` reads them; `making` and `keep` write them."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.path = folder / f"{key}.onnx"
        self.tokenizer_path = folder / f"{key}.tokenizer.json"
        self._verdict_path = folder / f"{key}.json"

    def verdict(self) -> Verdict | None:
        """Return the verdict; None where there is none, or one on a graph that is not whole (any more)."""
        try:
            found = msgspec.json.decode(self._verdict_path.read_bytes(), type=Verdict)
            if not found.is_adopted:
                return found
            are_whole = (_hash_of(self.path), _hash_of(self.tokenizer_path)) == (found.graph_hash, found.tokenizer_hash)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # of msgspec too
            log.warning("%s cannot be used: %s", self._verdict_path, error)
            return None
        if not are_whole:
            log.warning("%s is damaged: it is made again", self.path)
        return found if are_whole and found.recipe is not None else None

    @contextmanager
    def making(self) -> Iterator[Path | None]:
        """Give an empty private folder to make a graph in; None where another process makes one now."""
        make_private(self.folder)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            for left in self.folder.glob(f"{MAKING}*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=MAKING, dir=self.folder) as made:
                yield Path(made)
        finally:
            os.close(lock)

    def keep(self, made: Path, verdict: Verdict) -> Verdict:
        """Take over what was made: `model.onnx` and `tokenizer.json` of an adopted one, then the verdict. Raises OSError."""
        if verdict.is_adopted:
            graph, tokenizer = made / "model.onnx", made / "tokenizer.json"
            hashes = {"graph_hash": _hash_of(graph), "tokenizer_hash": _hash_of(tokenizer)}
            verdict = msgspec.structs.replace(verdict, **hashes)
            _move(graph, self.path)
            _move(tokenizer, self.tokenizer_path)
        noted = made / "verdict.json"
        noted.write_bytes(msgspec.json.format(msgspec.json.encode(verdict)))
        _move(noted, self._verdict_path)
        self._forget_older(verdict)
        return verdict

    def _forget_older(self, verdict: Verdict) -> None:
        """Remove what earlier versions of the model or of a library left: a graph is as large as its model."""
        for path in self.folder.glob("*.json"):
            if path.name.endswith(".tokenizer.json") or path == self._verdict_path:
                continue
            with suppress(OSError, ValueError):
                if msgspec.json.decode(path.read_bytes(), type=Verdict).of == verdict.of:
                    older = Graph(self.folder, path.stem)
                    for left in (older._verdict_path, older.path, older.tokenizer_path):
                        left.unlink(missing_ok=True)


def _move(made: Path, final: Path) -> None:
    """Put a file in its place at once and for good: written through to the disk, for this user alone."""
    made.chmod(0o600)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(final)


def graph_of(settings: ModelSettings) -> Graph | None:
    """Return where the graph of a model is kept, there or not; None where the model is not on disk. Raises ModelUnavailable."""
    key = key_of(settings)
    return None if key is None else Graph(Path(settings.graph_folder), key)
