"""The command of a worker process: ``python -m alignedsched_torch.workers``; started by the driver or by torchrun."""

from __future__ import annotations

import sys

from .worker import main

sys.exit(main())
