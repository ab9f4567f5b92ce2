"""Owns models that are made in milliseconds and know nothing: for tests in which weights do not matter."""

from __future__ import annotations

from pathlib import Path

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]


def tiny_cross_encoder(folder: Path, *, labels: int = 1) -> Path:
    """Write a BERT of two layers and 16 dimensions that reads letters, and return its folder."""
    return _tiny(folder, "BertForSequenceClassification", labels)


def tiny_encoder(folder: Path) -> Path:
    """Write the same without a classifier, as the transformer of an embedding model is, and return its folder."""
    return _tiny(folder, "BertModel", 1)


def _tiny(folder: Path, kind: str, labels: int) -> Path:
    import torch
    import transformers
    from transformers import BertConfig, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{one}" for one in LETTERS)]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        num_labels=labels,
    )
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, kind)(config).save_pretrained(folder)
    words = folder / "vocab.txt"
    words.write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(words), vocab_file=str(words)).save_pretrained(folder)
    return folder
