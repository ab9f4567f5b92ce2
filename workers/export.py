"""Owns how a loaded sentence-transformers model becomes an ONNX graph. Whether it may be used: see adoption.py.

By torch.onnx itself: `sentence-transformers[onnx]` wants another transformers than sentence-transformers (research, 6).
Pooling and normalisation stay outside of the graph: the token vectors are wanted as well.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from .graphs import Recipe
from .models import pooling_of

POOLINGS = ("mean", "cls", "max")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17  # the first with LayerNormalization: one operator where it were nine
ACTIVATIONS = ("Sigmoid", "Identity")  # what a cross-encoder may make of its logit
LONGEST_TOKENS = 100_000  # a tokenizer that says more says that it has no limit


class NotExportable(Exception):
    """This model's vectors cannot be computed from a graph of its transformer; the message says why."""


def recipe_of(model: Any) -> Recipe:
    """Return what is around the transformer of a SentenceTransformer. Raises NotExportable for what fast.py cannot do."""
    kinds = [type(module).__name__ for module in model]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise NotExportable(f"its modules are {', '.join(kinds)}, not Transformer, Pooling and perhaps Normalize")
    if model.default_prompt_name is not None:
        raise NotExportable(f"it puts the prompt {model.default_prompt_name!r} before each text")
    if getattr(model, "truncate_dim", None) is not None:
        raise NotExportable("it cuts its vectors")
    pooling = tuple(pooling_of(model[1]).split("+"))
    if unknown := [mode for mode in pooling if mode not in POOLINGS]:
        raise NotExportable(f"it pools by {', '.join(unknown)}")
    token_size = int(model[0].auto_model.config.hidden_size)
    return Recipe(
        **_tokens_of(model[0].tokenizer, model.max_seq_length),
        pooling=pooling,
        size=token_size * len(pooling),
        token_size=token_size,
    )


def pair_recipe_of(model: Any) -> Recipe:
    """Return what is around the transformer of a CrossEncoder. Raises NotExportable for what fast_pairs.py cannot do."""
    activation = type(model.activation_fn).__name__
    if activation not in ACTIVATIONS:
        raise NotExportable(f"it makes its scores by {activation}")
    if getattr(model, "default_prompt_name", None) is not None:
        raise NotExportable(f"it puts the prompt {model.default_prompt_name!r} before each pair")
    if model.model is None:
        raise NotExportable("it is not one transformer")
    # its name since sentence-transformers 6
    max_tokens = model.max_seq_length if hasattr(model, "max_seq_length") else model.max_length
    return Recipe(
        **_tokens_of(model.tokenizer, max_tokens or model.tokenizer.model_max_length),
        pooling=(),
        size=1,
        token_size=1,
        activation=activation,
    )


def _tokens_of(tokenizer: Any, max_tokens: int | None) -> dict[str, Any]:
    """Return the part of a recipe that is about tokens. Raises NotExportable."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise NotExportable(f"{type(tokenizer).__name__} is not a tokenizer of the tokenizers package")
    if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
        raise NotExportable("its tokenizer does not pad on the right")
    if not max_tokens or max_tokens > LONGEST_TOKENS:
        raise NotExportable("it has no longest input")
    inputs = tuple(name for name in INPUTS if name in tokenizer.model_input_names)
    if inputs[:2] != INPUTS[:2]:
        raise NotExportable(f"its transformer takes {', '.join(tokenizer.model_input_names)}")
    return {
        "inputs": inputs,
        "max_tokens": int(max_tokens),
        "pad_id": tokenizer.pad_token_id,
        "pad_token": tokenizer.pad_token,
        "pad_type": tokenizer.pad_token_type_id,
    }


def export(model: Any, recipe: Recipe, folder: Path, precision: str) -> None:
    """Write `model.onnx` and `tokenizer.json` into `folder`. Computes for seconds, in this process's torch threads.

    Raises NotExportable.
    """
    given = model[0].tokenizer(["zinc", "zinc and copper"], padding=True, return_tensors="pt")
    axes = {0: "batch", 1: "tokens"}
    _write(model[0].auto_model, model[0].tokenizer, given, recipe, folder, precision, ("last_hidden_state", axes))


def export_pairs(model: Any, recipe: Recipe, folder: Path) -> None:
    """Write the same of a CrossEncoder, whose graph gives the logit of each pair. Raises NotExportable."""
    given = model.tokenizer(["zinc", "zinc"], ["copper", "zinc and copper"], padding=True, return_tensors="pt")
    _write(model.model, model.tokenizer, given, recipe, folder, "fp32", ("logits", {0: "batch"}))


Output = tuple[str, dict[int, str]]  # its name, and those of its axes that are of any length


def _write(
    transformer: Any, tokenizer: Any, given: Any, recipe: Recipe, folder: Path, precision: str, output: Output
) -> None:
    raw = folder / "raw.onnx"
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself and about what it traces
            _trace(transformer, given, recipe, raw, output)
            if precision == "int8":
                raw = _quantised(raw, folder / "int8.onnx")
            _optimise(raw, folder / "model.onnx")
    except Exception as error:  # the exporter raises what it likes: torch's, protobuf's, onnxruntime's own
        words = str(error).strip().splitlines()
        raise NotExportable(f"{type(error).__name__}: {words[0] if words else ''}") from error


def _trace(inner: Any, given: Any, recipe: Recipe, path: Path, output: Output) -> None:
    import torch

    class First(torch.nn.Module):
        """The model with its inputs by position and one output: what the tracer takes."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: torch.Tensor) -> Any:
            return self.inner(**dict(zip(recipe.inputs, tensors, strict=True)), return_dict=False)[0]

    name, axes = output
    before, was_training = inner.config._attn_implementation, inner.training
    inner.set_attn_implementation("eager")  # plain products of matrices, which onnxruntime knows how to fuse
    try:
        with torch.no_grad():
            torch.onnx.export(
                First(inner.eval()),
                tuple(given[name] for name in recipe.inputs),
                str(path),
                input_names=list(recipe.inputs),
                output_names=[name],
                dynamic_axes={one: {0: "batch", 1: "tokens"} for one in recipe.inputs} | {name: axes},
                opset_version=OPSET,
                dynamo=False,  # the new exporter wants onnxscript
            )
    finally:
        inner.set_attn_implementation(before)
        inner.train(was_training)


def _quantised(raw: Path, path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it tells the root logger of each weight that it leaves as it is
    try:
        quantize_dynamic(raw, path, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return path


def _optimise(raw: Path, path: Path) -> None:
    """Have onnxruntime fuse what it can, once. Not up to its highest level: what that adds is for one kind of CPU."""
    from .fast import onnxruntime_without_telemetry

    ort = onnxruntime_without_telemetry()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
