"""`python -m alignedsched` is the `alignedsched` command."""

import sys

from .cli import main

sys.exit(main())
