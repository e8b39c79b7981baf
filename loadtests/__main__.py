"""`python -m loadtests`: the mixed load of `locustfile.py`, headless, against a running server."""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main() -> None:
    """Check that a server answers, then become Locust."""
    parser = argparse.ArgumentParser(prog="loadtests", description=__doc__)
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--users", type=int, default=16, help="concurrent users (default: 16)")
    parser.add_argument("--run-time", default="30s", help="default: %(default)s")
    args = parser.parse_args()
    try:
        urllib.request.urlopen(f"{args.host}/ready", timeout=5).close()  # noqa: S310
    except (OSError, ValueError) as error:
        print(f"error: no ready server at {args.host} ({error}); start one with `make serve`")
        sys.exit(2)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += ["--host", args.host, "--users", str(args.users), "--spawn-rate", str(args.users)]
    command += ["--run-time", args.run_time, "--only-summary"]
    os.execv(sys.executable, command)  # noqa: S606


if __name__ == "__main__":
    main()
