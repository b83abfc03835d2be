"""The errors of sdcli and their exit statuses. Imports nothing else of sdcli.

    SdcliError
    ├── UsageError                2   an invalid option or argument
    │   └── InvalidRecipe         2   a recipe whose values are invalid together or with the model
    ├── ModelError                3
    │   ├── ModelNotFound         3   unknown name, nothing at that path, not in the local cache
    │   ├── ModelCorrupt          3   truncated, wrong shapes, missing tensors or files
    │   └── ModelUnsafe           3   a pickle: loading one can run code
    ├── InputError                4   an image, mask, map or jobs file that is unreadable or does not fit
    ├── OutOfMemory               5
    │   └── NotDecoded            5   … to decode a picture that was sampled
    ├── InvalidPicture            6   the model produced NaN or a black picture
    ├── JobsFailed                7   some jobs of a batch failed
    ├── OutputError               8   the output cannot be written
    │   └── OutputExists          8   … because it already exists
    ├── PictureDiffers            9   a replayed picture differs
    └── ServerUnavailable        10   the warm process does not answer, is stopping, or has another version
        └── ServerBusy           10   … or too many requests wait

Any other exception is a bug in sdcli, with exit status 1.
"""

from collections.abc import Sequence
from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of every command; part of the public interface."""

    OK = 0
    BUG = 1
    USAGE = 2
    MODEL = 3
    INPUT = 4
    OUT_OF_MEMORY = 5
    INVALID_PICTURE = 6
    SOME_JOBS_FAILED = 7
    OUTPUT = 8
    PICTURE_DIFFERS = 9
    UNAVAILABLE = 10
    INTERRUPTED = 130
    TERMINATED = 143


class SdcliError(Exception):
    """An error with a `message` that says what is wrong and a `hint` that says how to fix it."""

    exit_status = ExitStatus.BUG
    reported = False
    """Whether a line on stdout has said it already."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SdcliError):
    """An invalid option or argument."""

    exit_status = ExitStatus.USAGE


class InvalidRecipe(UsageError):
    """A recipe whose values are invalid together or with the model; `field` is the wrong key."""

    def __init__(self, message: str, hint: str, field: str | None = None) -> None:
        super().__init__(message, hint)
        self.field = field


class ModelError(SdcliError):
    """A model that cannot be used."""

    exit_status = ExitStatus.MODEL


class ModelNotFound(ModelError):
    """No such model: unknown name, nothing at that path, or not in the local cache."""


class ModelCorrupt(ModelError):
    """Model files that are truncated, incomplete, or have wrong shapes."""


class ModelUnsafe(ModelError):
    """A pickle: loading one can run code."""


class InputError(SdcliError):
    """An image, mask, map or jobs file that cannot be read or does not fit."""

    exit_status = ExitStatus.INPUT


class OutOfMemory(SdcliError):
    """There is not enough memory for the picture."""

    exit_status = ExitStatus.OUT_OF_MEMORY


class NotDecoded(OutOfMemory):
    """There is not enough memory to decode pictures that were sampled; `latents` are the files of theirs."""

    def __init__(self, message: str, hint: str, latents: Sequence[bytes] = ()) -> None:
        super().__init__(message, hint)
        self.latents = tuple(latents)


class InvalidPicture(SdcliError):
    """The model produced NaN or a black picture."""

    exit_status = ExitStatus.INVALID_PICTURE


class JobsFailed(SdcliError):
    """Some jobs of a batch failed; the pictures of the others were made."""

    exit_status = ExitStatus.SOME_JOBS_FAILED


class OutputError(SdcliError):
    """The output cannot be written."""

    exit_status = ExitStatus.OUTPUT


class OutputExists(OutputError):
    """The output already exists."""


class PictureDiffers(SdcliError):
    """A replayed picture differs from the original."""

    exit_status = ExitStatus.PICTURE_DIFFERS


class ServerUnavailable(SdcliError):
    """The warm process does not answer, is stopping, or has another version."""

    exit_status = ExitStatus.UNAVAILABLE


class ServerBusy(ServerUnavailable):
    """Too many requests wait in the warm process."""
