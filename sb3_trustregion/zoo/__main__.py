"""Entry point of ``python -m sb3_trustregion.zoo``."""

import sys

from sb3_trustregion.zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
