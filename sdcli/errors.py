"""Every error a user can meet, and the exit status it becomes. Imports nothing of sdcli.

    SdcliError
    ├── UsageError                2   an option or argument that cannot be
    │   └── InvalidRecipe         2   a recipe whose parts do not fit together or its model
    ├── ModelError                3
    │   ├── ModelNotFound         3   unknown name, nothing at that path, not in the local cache
    │   ├── ModelCorrupt          3   truncated, wrong shapes, missing tensors or files
    │   └── ModelUnsafe           3   a pickle, which could run code when opened
    ├── InputError                4   an image, mask, map or jobs file that cannot be read or does not fit
    ├── OutOfMemory               5
    ├── InvalidPicture            6   the model produced NaN, or black by failure
    ├── JobsFailed                7   some jobs of a batch failed
    ├── OutputError               8   the output could not be written
    │   └── OutputExists          8   … because it is there already
    ├── PictureDiffers            9   a replayed picture is not the same
    └── ServerUnavailable        10   no warm process answers, or it is stopping, or of another version
        └── ServerBusy           10   … or its line is full

Anything else that escapes is a bug in sdcli and exits 1.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of every command; part of the contract with the shell."""

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
    """An error with a way out: `message` says what is wrong, `hint` what to do about it."""

    exit_status = ExitStatus.BUG

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SdcliError):
    """An option or argument that cannot be."""

    exit_status = ExitStatus.USAGE


class InvalidRecipe(UsageError):
    """A recipe whose parts do not fit together or its model; `field` is the flat key at fault."""

    def __init__(self, message: str, hint: str, field: str | None = None) -> None:
        super().__init__(message, hint)
        self.field = field


class ModelError(SdcliError):
    """A model that cannot be used."""

    exit_status = ExitStatus.MODEL


class ModelNotFound(ModelError):
    """No such model: unknown name, nothing at that path, or not in the local cache."""


class ModelCorrupt(ModelError):
    """Model files that are truncated, of wrong shapes, or incomplete."""


class ModelUnsafe(ModelError):
    """A pickle, which could run code when opened."""


class InputError(SdcliError):
    """An image, mask, map or jobs file that cannot be read or does not fit."""

    exit_status = ExitStatus.INPUT


class OutOfMemory(SdcliError):
    """The machine has too little memory for the picture asked for."""

    exit_status = ExitStatus.OUT_OF_MEMORY


class InvalidPicture(SdcliError):
    """The model produced NaN, or a picture black by failure."""

    exit_status = ExitStatus.INVALID_PICTURE


class JobsFailed(SdcliError):
    """Some jobs of a batch failed, and its other pictures are made."""

    exit_status = ExitStatus.SOME_JOBS_FAILED


class OutputError(SdcliError):
    """The output could not be written."""

    exit_status = ExitStatus.OUTPUT


class OutputExists(OutputError):
    """The output is there already."""


class PictureDiffers(SdcliError):
    """A replayed picture is not the same."""

    exit_status = ExitStatus.PICTURE_DIFFERS


class ServerUnavailable(SdcliError):
    """The warm process does not answer, is stopping, or is of another version."""

    exit_status = ExitStatus.UNAVAILABLE


class ServerBusy(ServerUnavailable):
    """As many pictures wait in the warm process as may."""
