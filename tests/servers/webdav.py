"""A WebDAV server: wsgidav under cheroot, in a thread, with TLS and a
bearer token if asked.
"""

from __future__ import annotations

import threading
from pathlib import Path

from .process import answers, free_port


class WebdavServer:
    """wsgidav on the loopback interface.

    Parameters
    ----------
    folder : `pathlib.Path`
        What it serves.
    token : `str`, optional
        Bearer token that requests must carry.
    certificate, key : `pathlib.Path`, optional
        With them it speaks TLS.
    """

    def __init__(
        self, folder: Path, *, token: str = "", certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self.folder = folder
        self._token = token
        port = free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}/"
        self._server = self._make_server(port)
        if certificate and key:
            from cheroot.ssl.builtin import BuiltinSSLAdapter

            self._server.ssl_adapter = BuiltinSSLAdapter(str(certificate), str(key))
        self._thread = threading.Thread(target=self._server.serve, name="webdav", daemon=True)

    def _make_server(self, port: int):
        from cheroot import wsgi
        from wsgidav.wsgidav_app import WsgiDAVApp

        settings = {
            "provider_mapping": {"/": str(self.folder)},
            "http_authenticator": {"domain_controller": None},
            "simple_dc": {"user_mapping": {"*": True}},
            "verbose": 1,
            "logging": {"enable": False},
            "lock_storage": True,
            "property_manager": None,
            "dir_browser": {"enable": False},
        }
        self._app = WsgiDAVApp(settings)
        return wsgi.Server(("127.0.0.1", port), self._guarded, numthreads=12, shutdown_timeout=1)

    def _guarded(self, environment, start_response):
        if self._token and environment.get("HTTP_AUTHORIZATION") != f"Bearer {self._token}":
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
            return [b""]
        return self._app(environment, start_response)

    def __enter__(self):
        # Binds here, so that a failure is one of the test that wants it.
        self._server.prepare()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.stop()
        self._thread.join(10)

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        return answers(self.url, method="OPTIONS", statuses=(200, 401))
