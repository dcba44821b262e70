"""An S3 server for tests: moto's, in a process of its own on a free port."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

__all__ = ["Bucket"]


class Bucket:
    """A server with one bucket, ``pictures``; it runs inside ``with`` and keeps nothing."""

    url = "s3://pictures/prefix"

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What reaches it, as the tools of AWS read it."""
        return {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def __enter__(self) -> "Bucket":
        """Start it, and make the bucket."""
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        make = urllib.request.Request(f"{self.endpoint}/pictures", method="PUT")
        until = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(make, timeout=10).close()
                return self
            except (urllib.error.URLError, OSError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
