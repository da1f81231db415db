"""python -m tidewire.cli: the `tidewire` command where no script is installed."""

import sys

from . import main

sys.exit(main())
