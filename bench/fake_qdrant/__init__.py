"""A fake Qdrant server for tests: the REST calls that workers/qdrant.py makes, over the embedded engine, with faults on demand.

    client ──▶ front (faults on demand) ──▶ routes ──▶ engine (qdrant-edge)       python -m bench.fake_qdrant
                                       └──▶ forwarder ──▶ a real Qdrant server    python -m bench.fake_qdrant --forward URL

What reads and writes points is Qdrant's own code: qdrant-edge is the server's shard, so that conditions, update modes, filters
and what happens to a point that is missing are the server's. Ours, and therefore fake: HTTP, collections and aliases. They do
as the server's source does, and refuse with 501 what they do not know. No graph is built, and nothing is replicated.
"""
