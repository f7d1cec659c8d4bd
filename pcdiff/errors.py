"""The error that a user can correct."""


class InputError(ValueError):
    """An input that cannot be used. The message is one line: what was expected, what was given, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class MethodError(ValueError):
    """A method broke its contract: it failed, or returned something else than a proposal. Exit code 1."""


class OutputError(RuntimeError):
    """A result did not pass its own check; nothing was written."""
