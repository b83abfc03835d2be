"""What clients may use: connections, time, bytes, pixels and characters. Options of `sdcli serve`."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.recipe.bounds import check_area

BACKLOG = 128
"""How many connections wait to be accepted; they are accepted all at once, and each is a file descriptor."""
_OTHER_FILES = 128
"""Descriptors for everything but connections and the files in their forms: weights, libraries."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of the connections of each address."""

    connections: int = 128
    request_seconds: float = 30.0
    upload_mib: int = 64
    upload_megapixels: float = 25.0
    megapixels: float = 4.2
    prompt_characters: int = 8000

    def check_text(self, text: str, field: str) -> None:
        """Raise InvalidRecipe for a prompt that is too long."""
        if len(text) > self.prompt_characters:
            raise InvalidRecipe(
                f"{field} has {len(text):,} characters",
                f"the limit of this server is {self.prompt_characters:,}",
                field,
            )

    def check_size(self, width: int, height: int) -> None:
        """Raise InvalidRecipe for a picture to make that has too many pixels."""
        check_area(width, height, int(self.megapixels * 1e6), what="size", field="size")

    def check_upload(self, size: tuple[int, int], param: str) -> None:
        """Raise InvalidRecipe for a file of a form with too many pixels, before they are decoded."""
        check_area(*size, int(self.upload_megapixels * 1e6), what=param, field=param)

    def reserve_files(self, addresses: int) -> None:
        """Raise the soft limit of open files to what the connections need. Raises UsageError if that is not allowed."""
        needed = addresses * (self.connections + BACKLOG + 1) + 2 * self.connections + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError) as error:  # above the hard limit, or that of the system
            raise UsageError(
                f"--max-connections {self.connections} needs {needed} open files, and the limit is {hard}",
                f"raise it with ulimit -n {needed}, or use a smaller --max-connections",
            ) from error
