"""python -m fusedlstm: the command line of the language model."""

import sys

from fusedlstm.lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
