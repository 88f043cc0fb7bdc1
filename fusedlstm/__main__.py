"""python -m fusedlstm: the command line of the language model."""

import os
import sys
from pathlib import Path

from fusedlstm import startup
from fusedlstm.lm.cli import main

if __name__ == "__main__":
    for name in ("stdout", "stderr"):  # None if the process was started with it closed
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    with startup.keyboard_interrupts():
        status = main()
    sys.exit(status)
