"""`python -m relayd` is the command `relayd`."""

from __future__ import annotations

from relayd.cli.main import main

if __name__ == "__main__":
    main()
