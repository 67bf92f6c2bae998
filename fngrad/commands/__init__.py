"""The commands of the command line `fngrad`, one per file."""
