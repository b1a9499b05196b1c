"`python -m eo_brew`: the command line."

import sys

from eo_brew.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
