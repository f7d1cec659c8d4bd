"""The error that a user can correct."""


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
