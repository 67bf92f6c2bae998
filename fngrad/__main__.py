"""``python -m fngrad`` is the command ``fngrad``."""

import sys

from fngrad.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
