"""The errors of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, holds another tree, or cannot be written."""


class UnreadableError(CheckpointError):
    """A checkpoint may be good, but cannot be read here or now.

    It is neither skipped for an older one nor deleted.
    """
