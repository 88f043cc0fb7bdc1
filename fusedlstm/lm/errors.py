"""The errors of this package that are the user's to correct; the command line prints them as one line."""


class InputError(ValueError):
    """An argument, a file or the two together cannot be used. The message says what is wrong and what to do."""


class CheckpointError(InputError):
    """A file is not a checkpoint of this package, or is damaged."""
