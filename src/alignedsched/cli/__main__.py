"""`python -m alignedsched.cli` is the `alignedsched` command."""

import sys

from . import main

sys.exit(main())
