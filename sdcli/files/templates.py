"""Filling the templates of pages for a browser. Knows nothing of what is on them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"\{\{(\w+)\}\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each `{{name}}` in `template` once; what comes from a value is not looked at again."""
    return _NAME.sub(lambda match: values[match[1]], template)


def script_json(value: Any) -> str:
    """Return JSON that cannot end a script element, also of texts with lone surrogates."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
