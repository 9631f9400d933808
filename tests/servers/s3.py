"""An S3 server: moto, which accepts any credentials."""

from __future__ import annotations

import sys
from pathlib import Path

from .process import ServerProcess, answers, free_port


class S3Server(ServerProcess):
    """moto's server in a process of its own.

    ``environment`` of `client_environment` makes clients use it.
    """

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        super().__init__(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            ready=lambda: answers(self.endpoint + "/"),
            log=folder / "s3.log",
        )

    @property
    def client_environment(self) -> dict[str, str]:
        """Variables that lead a client here."""
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="someone",
            aws_secret_access_key="something",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
