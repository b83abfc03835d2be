"""Loads the tokenizer of a language model, T5, Gemma or Qwen, and the image processor of Qwen-VL, with transformers.

Imports transformers when one is read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt
from sdcli.models import families, qwen_tokenizer
from sdcli.models.imports import lean_imports

_CLASSES = {
    "t5": "transformers.models.t5.tokenization_t5:T5Tokenizer",
    "gemma": "transformers.models.gemma.tokenization_gemma:GemmaTokenizer",
    "qwen": "transformers.models.qwen2.tokenization_qwen2:Qwen2Tokenizer",
}


def kind_of(model: Any) -> str:
    """Return the kind of the tokenizer of a text encoder: t5, gemma or qwen."""
    name = type(model).__name__.lower()
    return next(kind for kind in _CLASSES if name.startswith(kind))


def read(folder: Path, kind: str, model: Any) -> Any:
    """Load the tokenizer of this kind in `folder` for a text encoder.

    Only reads local files; `families.QWEN` is Qwen's own. Raises ModelCorrupt for files that are missing, invalid, or
    do not fit the encoder.
    """
    module, _, name = _CLASSES[kind].partition(":")
    with lean_imports():
        made = getattr(importlib.import_module(module), name)
    if not folder.is_dir():
        raise ModelCorrupt(f"{folder} is missing", "download the model's folder again, with its tokenizer")
    try:
        if folder == families.QWEN:
            tokenizer = qwen_tokenizer.make(made)
        else:
            tokenizer = made.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises anything for invalid files
        what = " ".join(str(error).split())
        raise ModelCorrupt(
            f"the tokenizer in {folder} cannot be used: {what}", "download the model's folder again"
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelCorrupt(
            f"the tokenizer in {folder} does not fit: it has {len(tokenizer)} tokens, the text encoder {rows}",
            "download the model's folder again",
        )
    return tokenizer


def read_image_processor(folder: Path) -> Any:
    """Load the image processor of Qwen-VL in `folder`. Raises ModelCorrupt for files that are missing or invalid."""
    with lean_imports():
        try:
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Kind
        except ImportError:  # transformers before 5.10 has one class
            from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Kind
    try:
        return Kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises anything for invalid files
        what = " ".join(str(error).split())
        raise ModelCorrupt(
            f"the image processor in {folder} cannot be used: {what}", "download the model's folder again"
        ) from error
