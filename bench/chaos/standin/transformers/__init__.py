"""See sentence_transformers.py beside this folder."""
