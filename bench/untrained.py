"""Owns a cross-encoder of MiniLM's size without a hub: the packaged embedding model's body under a head of seeded noise.

It computes what a trained one computes, and as fast; its order means nothing, and its name says so.
"""

from __future__ import annotations

from pathlib import Path

from morgan.background.workers.models import resolve

BODY = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "untrained-cross-encoder-of-all-MiniLM-L6-v2"
HEAD_DEVIATION = 0.2  # of the head's weights: scores of different pairs then lie tenths apart, not millionths


def untrained(folder: Path) -> Path:
    """Save it in a folder of its name in `folder`, and return that."""
    import torch
    import transformers.utils.logging as hub_logging
    from transformers import AutoTokenizer, BertForSequenceClassification

    hub_logging.set_verbosity_error()  # that the head is new is what is wanted
    hub_logging.disable_progress_bar()

    made = folder / NAME
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(resolve(BODY), num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=HEAD_DEVIATION)
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(resolve(BODY)).save_pretrained(made)
    return made
