"""Entry point of ``python -m sb3_trustregion.benchmark``."""

import sys

from sb3_trustregion.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
