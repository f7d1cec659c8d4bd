"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """What was given breaks a rule. The message is one line: what was expected, what came, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class OutputError(RuntimeError):
    """A result did not pass its own check; nothing was written."""
