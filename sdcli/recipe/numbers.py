"""Numbers as text."""

from __future__ import annotations

from decimal import Decimal


def plain(number: float) -> str:
    """Format a number for parsing: the shortest exact form without an exponent."""
    return f"{Decimal(repr(number)):f}".removesuffix(".0")
