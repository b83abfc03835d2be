"""Loads the tokenizer of a language model, T5 or Qwen, and the image processor of Qwen-VL, with transformers.

Imports transformers when one is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt
from sdcli.models import families, qwen_tokenizer
from sdcli.models.imports import lean_imports


def read(folder: Path, *, is_t5: bool, model: Any) -> Any:
    """Load the tokenizer in `folder` for a text encoder.

    Only reads local files; `families.QWEN` is Qwen's own. Raises ModelCorrupt for files that are missing, invalid, or
    do not fit the encoder.
    """
    with lean_imports():
        if is_t5:
            from transformers.models.t5.tokenization_t5 import T5Tokenizer as Kind
        else:
            from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer as Kind
    if not folder.is_dir():
        raise ModelCorrupt(f"{folder} is missing", "download the model's folder again, with its tokenizer")
    try:
        if folder == families.QWEN:
            tokenizer = qwen_tokenizer.make(Kind)
        else:
            tokenizer = Kind.from_pretrained(str(folder), local_files_only=True)
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
