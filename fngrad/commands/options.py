"""Options that commands share. Importing this needs tyro, from the extra ``cli``."""

from pathlib import Path
from typing import Annotated

from fngrad.programs.optional_imports import import_extra

_conf = import_extra("tyro.conf", "cli")

Output = Annotated[Path | None, _conf.arg(aliases=["-o"])]
Function = Annotated[str, _conf.arg(metavar="FILE:FUNCTION")]
