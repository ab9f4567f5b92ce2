"""Owns the exception tree and the code each error travels under. Every message says what to do next."""

from __future__ import annotations

from typing import ClassVar


class MorganError(Exception):
    """Base of every error this package raises on purpose. `code` is its name on the wire (docs/protocol.md)."""

    code: ClassVar[str] = "error"
    is_transient: ClassVar[bool] = False
    """True where the same call may succeed later without anybody changing anything."""


class ConfigError(MorganError, ValueError):
    """The configuration cannot be used. Names the file, the key and the accepted values: mend it and start again."""

    code = "config"


class InvalidArgument(MorganError, ValueError):
    """An argument is not among the accepted values, which the message lists."""

    code = "invalid_argument"


class ProtocolError(MorganError):
    """A message could not be read: wrong version, unknown type or wrong shape. See docs/protocol.md."""

    code = "protocol"


class CollectionNotFound(MorganError, LookupError):
    """No collection or alias has that name. The message lists those that exist."""

    code = "collection_not_found"


class TaskNotFound(MorganError, LookupError):
    """No task or schedule has that id. `morgan-background tasks` lists the known ones."""

    code = "task_not_found"


class VectorSizeMismatch(MorganError, ValueError):
    """The collection's vectors and the model's have different sizes: configure the model that made the vectors."""

    code = "vector_size"


class TextFieldNotFound(MorganError, LookupError):
    """No point of the collection has the configured text field. The message suggests the longest text field found."""

    code = "text_field"


class SwapImpossible(MorganError):
    """A collection cannot be exchanged for its new version under the same name. The message says what can be done."""

    code = "swap"


class ModelUnavailable(MorganError):
    """The embedding or reranking model could not be loaded: install the extra or name a model that is at hand."""

    code = "model"


class StoreUnavailable(MorganError):
    """The vector store did not answer. Tasks wait and are tried again; check that Qdrant runs at the configured url."""

    code = "store_unavailable"
    is_transient = True


class StoreLocked(MorganError):
    """Another process has the embedded store open. Talk to that service through `Client`, or stop it first."""

    code = "store_locked"


class ServiceUnavailable(MorganError):
    """No service answered on the socket within the deadline: `morgan-background serve` starts one."""

    code = "service_unavailable"
    is_transient = True


class AlreadyRunning(MorganError):
    """Another supervisor holds this state directory. Stop it, or give this one a directory of its own."""

    code = "already_running"


class ResultStoreError(MorganError):
    """The shared-memory result store cannot be used as it is. The message says which file and what is wrong with it."""

    code = "result_store"


class TaskCancelled(MorganError):
    """The task was cancelled at a step boundary; everything up to its last checkpoint is kept."""

    code = "cancelled"


def _tree(root: type[MorganError]) -> dict[str, type[MorganError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(code: str, message: str) -> MorganError:
    """Return the exception that `code` stands for; an unknown code gives the base class, never a silent success."""
    return _tree(MorganError).get(code, MorganError)(message)
