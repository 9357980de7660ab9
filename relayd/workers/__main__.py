"""`python -m relayd.workers`: a worker process, as the supervisor starts it."""

from __future__ import annotations

import sys
from typing import Any, cast

# structlog loads rich and Pygments for tracebacks in colour: 4 MiB in every worker, for what a daemon's log never shows
sys.modules["rich"] = cast(Any, None)

from relayd.app import App  # noqa: E402
from relayd.workers.worker import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda: App))
