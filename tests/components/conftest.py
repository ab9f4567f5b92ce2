from __future__ import annotations

import pytest

from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.models import SentenceTransformerEmbedder


@pytest.fixture(scope="session")
def embedder() -> SentenceTransformerEmbedder:
    """The default model, loaded once: the import of torch alone takes seconds."""
    found = SentenceTransformerEmbedder(ModelSettings())
    assert found.size == 384
    return found
