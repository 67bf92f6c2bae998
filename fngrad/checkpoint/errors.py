"""What goes wrong with checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, is of something else, or cannot be written."""
