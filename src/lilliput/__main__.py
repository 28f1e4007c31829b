"""`python -m lilliput`, for where the command isn't on the path."""

import sys

from lilliput.cli import main

if __name__ == "__main__":
    sys.exit(main())
