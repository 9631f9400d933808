"""The environment as ``lsst.resources`` and its clients see it."""

from __future__ import annotations

import os
from collections.abc import Mapping

_PREFIXES = ("LSST_HTTP_", "LSST_RESOURCES_", "AWS_", "S3_")
_NAMES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY")

# Retries after 5xx answers wait for seconds otherwise.
_IMPATIENT = {"LSST_HTTP_BACKOFF_MIN": "0.01", "LSST_HTTP_BACKOFF_MAX": "0.02"}


def change_environment(monkeypatch, variables: Mapping[str, str]) -> None:
    """Set variables, remove foreign ones, and have them read again."""
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name in _NAMES:
            monkeypatch.delenv(name)
    for name, value in {**_IMPATIENT, **variables}.items():
        monkeypatch.setenv(name, value)
    forget_environment()


def forget_environment() -> None:
    """Drop what the backends have read, and their sessions."""
    from lsst.resources.http import HttpResourcePath, _get_dav_and_server_headers
    from lsst.resources.s3utils import _get_s3_client

    # One client for each end point, whatever the credentials are by now.
    _get_s3_client.cache_clear()
    HttpResourcePath._reload_config()
    config = HttpResourcePath._config
    # The stores keep the configuration of the time when the module was loaded.
    for store in (HttpResourcePath._metadata_session_store, HttpResourcePath._data_session_store):
        store.clear()
        store._config = config
        store._backoff_min, store._backoff_max = config.backoff_min, config.backoff_max
    _get_dav_and_server_headers.cache_clear()
