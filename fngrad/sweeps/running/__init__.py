"""How lanes run: tracing, block widths, storage."""
