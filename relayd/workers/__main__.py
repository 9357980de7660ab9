"""`python -m relayd.workers`: a worker process, as the supervisor starts it."""

from __future__ import annotations

import sys

from relayd.app import App
from relayd.workers.worker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda: App))
