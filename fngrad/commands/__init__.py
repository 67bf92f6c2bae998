"""What the command line `fngrad` does, one command per file."""
