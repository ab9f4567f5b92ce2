"""Owns the rerankers that were learned, on disk: the folders of each collection, and which of them is in use.

    <folder>/<collection>/use.json     which is in use and which was before: replaced as a whole, by a learn task alone
    <folder>/<collection>/<version>/   learned.json, and model/ with a cross-encoder; whole before use.json names it
    <folder>/<collection>/making/      what a learn task has made so far, to go on from

One task at a time works on a collection, so one process at a time writes in its folder. Any may read.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import msgspec
import xxhash

from ..ipc.errors import InvalidArgument
from ..ipc.paths import make_private

log = logging.getLogger(__name__)

FORMAT = 1  # of learned.json: what has another one is not used


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """A reranker that was learned, and what it was found to be better than."""

    version: str
    embedder: str  # whose vectors and tokens it was learned with: with those of another model it is not used
    instead_of: str  # the configured reranker that it stands in for: where another is configured, it is not used
    weights: tuple[float, ...]  # of the views, in the order of learned_reranker.VIEWS
    has_model: bool  # else it is weights alone
    max_words: int  # of an excerpt that the cross-encoder reads
    learned_at: float
    queries: int  # judged ones that it was learned from
    held_out: int  # judged ones that it was compared on
    before: float  # their mean nDCG@10 with what was in use
    after: float
    low: float  # of the 95 % interval of the gain
    high: float
    format: int = FORMAT


class InUse(msgspec.Struct, frozen=True):
    """Names of versions; "" is the configured reranker."""

    now: str = ""
    before: str = ""


class Shelf:
    """The learned rerankers of one collection, in a folder under `root`."""

    def __init__(self, root: Path, collection: str) -> None:
        self.collection = collection
        # readable as far as it goes, and told apart by the hash: a name may be longer in bytes than a folder's
        self.folder = root / f"{quote(collection, safe='')[:80]}-{xxhash.xxh3_64_hexdigest(collection.encode())}"
        self.use_path = self.folder / "use.json"
        self.making = self.folder / "making"

    def in_use(self) -> InUse:
        try:
            return msgspec.json.decode(self.use_path.read_bytes(), type=InUse)
        except FileNotFoundError:
            return InUse()
        except (OSError, ValueError) as error:  # of msgspec too
            log.warning("%s cannot be read, so the configured reranker is used: %s", self.use_path, error)
            return InUse()

    def read(self, version: str) -> Learned | None:
        """Return a version; None where it is not there, not whole, or of another format."""
        try:
            found = msgspec.json.decode((self.folder / version / "learned.json").read_bytes(), type=Learned)
        except (OSError, ValueError) as error:
            log.warning("the learned reranker %s of %s cannot be used: %s", version, self.collection, error)
            return None
        if found.format != FORMAT:
            log.warning("the learned reranker %s of %s has format %d", version, self.collection, found.format)
            return None
        return found

    def model_folder(self, version: str) -> Path:
        return self.folder / version / "model"

    # --- a learn task alone -------------------------------------------------------------------------------------------

    def begin(self, job: str) -> Path:
        """Return the folder that the task `job` makes its reranker in; what another task left there is removed."""
        for folder in (self.folder.parent, self.folder):
            make_private(folder)
        mine = self.making / job
        if self.making.is_dir():
            for left in self.making.iterdir():
                if left != mine:
                    shutil.rmtree(left)
        mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        return mine

    def adopt(self, made: Path, learned: Learned) -> None:
        """Use what was made from now on. `made` has the model in `model`, if there is one. Older ones but one are removed."""
        (made / "learned.json").write_bytes(msgspec.json.format(msgspec.json.encode(learned)))
        for path in sorted(made.rglob("*")):
            if path.is_file():
                _written_through(path)
        final = self.folder / learned.version
        if final.exists():  # of an attempt that was cut off before use.json named it
            shutil.rmtree(final)
        made.replace(final)
        _written_through(self.folder)
        now = self.in_use().now
        self._use(InUse(now=learned.version, before=now))
        self.tidy()

    def undo(self) -> InUse:
        """Use what was used before; once more, and it is as it was. Raises InvalidArgument where nothing was learned."""
        held = self.in_use()
        if held.now == held.before:
            raise InvalidArgument(f"nothing was learned for {self.collection!r}, so there is nothing to go back to")
        back = InUse(now=held.before, before=held.now)
        self._use(back)
        return back

    def tidy(self) -> None:
        """Remove what no task goes on with, and versions that are not in use and cannot be gone back to."""
        held = self.in_use()
        kept = {held.now, held.before, self.use_path.name}
        for path in self.folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _use(self, use: InUse) -> None:
        new = self.use_path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(use))
        _written_through(new)
        new.replace(self.use_path)
        _written_through(self.folder)


def _written_through(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
