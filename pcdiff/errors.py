"""The error that a user can correct."""


class InputError(ValueError):
    """An input that cannot be used. The message is one line: what was expected, what was given, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class OutputError(RuntimeError):
    """A result did not pass its own check; nothing was written."""
