"""Spends a RAG machine's spare capacity on making retrieval better."""
