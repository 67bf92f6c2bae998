"""What goes wrong with checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, is of something else, or cannot be written."""


class UnreadableError(CheckpointError):
    """A checkpoint that may be good, but cannot be read here or now.

    It is neither passed over for an older one nor deleted.
    """
