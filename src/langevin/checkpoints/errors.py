"""The one error of this room."""


class CheckpointError(OSError, ValueError):
    """A checkpoint cannot be found, read, trusted or written; the message is one line that says which file and why.

    It is both an ``OSError`` and a ``ValueError``, so code written for the reference library, which raises now one, now
    the other, catches it.
    """
