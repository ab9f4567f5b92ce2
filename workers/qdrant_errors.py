"""Owns what an error of qdrant-client means to us."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ..ipc.errors import CollectionNotFound, InvalidArgument, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

NOT_FOUND = 404
BUSY = (408, 429)  # it ran out of its own time, or of what it lets one client do


def reachable(method: Callable[P, T]) -> Callable[P, T]:
    """Turn what qdrant-client raises for a server that does not answer into StoreUnavailable, without its key."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        import httpx
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        where = getattr(args[0], "where", "the vector store")
        try:
            return method(*args, **kwargs)
        except (ResponseHandlingException, httpx.HTTPError, ConnectionError, TimeoutError) as error:
            raise StoreUnavailable(
                f"Qdrant at {where} does not answer ({type(error).__name__}): check that it runs; tasks wait for it"
            ) from error
        except ResourceExhaustedResponse as error:
            raise StoreUnavailable(f"Qdrant at {where} has too much to do: tasks wait for it") from error
        except UnexpectedResponse as error:
            if error.status_code is not None and (error.status_code in BUSY or error.status_code >= 500):
                raise StoreUnavailable(f"Qdrant at {where} answered with status {error.status_code}") from error
            if error.status_code in (401, 403):
                raise InvalidArgument(f"Qdrant at {where} refused the API key: correct [store] api_key") from error
            if error.status_code == NOT_FOUND:
                raise CollectionNotFound(
                    f"what was asked of Qdrant at {where} is not there any more: {error}"
                ) from error
            raise

    return call
