"""``python -m sgc_distiller`` is ``sgc``."""

import sys

from sgc_distiller.app import main

if __name__ == "__main__":
    sys.exit(main())
