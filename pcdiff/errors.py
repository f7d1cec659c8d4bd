"""The error that a user can correct, and what the user is told of any error: one line and an exit code."""

from __future__ import annotations

import errno

NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # of the disk


class InputError(ValueError):
    """An input that cannot be used. The message is one line: what was expected, what was given, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class ChoiceError(InputError):
    """A scan that holds several of what is wanted, such as CT series; an option of some commands chooses one."""

    def __init__(self, several: str, choose: str, listed: str, remedy: str) -> None:
        """several: what there is. choose: by which option. listed: to choose from. remedy: without the option."""
        super().__init__(f"{several}; {choose}: {listed}")
        self._without_option = f"{several}: {listed}; {remedy}"

    def without_option(self) -> InputError:
        """The same for a command that has no such option."""
        return InputError(self._without_option)


class MethodError(ValueError):
    """A method broke its contract: it failed, or returned something else than a proposal. Exit code 1."""


class OutputError(RuntimeError):
    """A result did not pass its own check; nothing was written."""


def exit_code(error: Exception) -> int:
    """2 for input that the user can correct, such as a path that no system can open; 3 for a full disk; 1 else."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_PATH or isinstance(error, InputError):
        return 2
    return 3 if number in NOT_WRITTEN else 1


def error_line(error: Exception) -> str:
    """The error in one line for the user."""
    if isinstance(error, InputError | MethodError | OutputError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        advice = "; free space, or write elsewhere" if error.errno in NOT_WRITTEN else ""
        return f"{error.filename or 'input or output'}: {error.strerror or first_line(error)}{advice}"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or crop the scan to the head"
    return (
        f"unexpected {type(error).__name__}: {first_line(error)}; run again with PCDIFF_DEBUG=1 to see where, and "
        "please report it"
    )


def first_line(error: Exception) -> str:
    """The first line of the error's message, or its class if there is no message."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
