"""nginx (Debian's packages nginx-light and libnginx-mod-http-dav-ext) as a WebDAV server, and as a proxy that
speaks TLS.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from pathlib import Path

from .process import ServerProcess, answers, free_port

_MODULE = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"

# No locks: with them OPTIONS says "DAV: 2" only, and lsst.resources takes it for a server without WebDAV.
_WEBDAV = """
  client_max_body_size {largest};
  server {{
    listen 127.0.0.1:{port};
    root {folder}/root;
    location / {{
      dav_methods PUT DELETE MKCOL COPY MOVE;
      dav_ext_methods PROPFIND OPTIONS;
      create_full_put_path on;
      dav_access user:rw;
    }}
  }}
"""

# As web.rst has it.
_PROXY = """
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/chain.pem;
    ssl_certificate_key {folder}/key.pem;
    location / {{
      proxy_pass http://127.0.0.1:{target};
      proxy_set_header Host $http_host;
    }}
  }}
"""

_CONFIGURATION = """
load_module {module};
{user}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {server}
}}
"""


def _command(folder: Path, server: str) -> list[str]:
    """Write the configuration, and make the command that runs nginx with it."""
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    text = _CONFIGURATION.format(module=_MODULE, user=user, folder=folder, server=server)
    (folder / "nginx.conf").write_text(text)
    return [
        "/usr/sbin/nginx",
        *("-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")),
    ]  # fmt: skip


class NginxServer(ServerProcess):
    """nginx on the loopback interface.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where it keeps everything; it serves ``root`` in it.
    largest : `int`, optional
        Largest body it accepts, bytes; 0 is any.
    """

    def __init__(self, folder: Path, *, largest: int = 0) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self.folder = folder / "root"
        self.folder.mkdir()
        super().__init__(
            _command(folder, _WEBDAV.format(folder=folder, port=port, largest=largest)),
            ready=lambda: answers(self.url, method="OPTIONS"),
            log=folder / "output.log",
        )


class TlsProxy(ServerProcess):
    """nginx before a web server, with a certificate that it has made itself.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where it keeps everything.
    target : `int`
        Port of the web server.
    """

    def __init__(self, folder: Path, target: int) -> None:
        port = free_port()
        self.url = f"https://localhost:{port}"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
             "-days", "2", "-keyout", str(folder / "key.pem"), "-out", str(folder / "chain.pem")],
            check=True, capture_output=True,
        )  # fmt: skip
        super().__init__(
            _command(folder, _PROXY.format(folder=folder, port=port, target=target)),
            ready=lambda: _listens(port),
            log=folder / "output.log",
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
