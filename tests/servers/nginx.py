"""A WebDAV server: nginx with its dav-ext module (Debian's packages
nginx-light and libnginx-mod-http-dav-ext).
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from .process import ServerProcess, answers, free_port

_MODULE = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"

# No locks: with them OPTIONS says "DAV: 2" only, and lsst.resources takes it for a server without WebDAV.
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
  client_max_body_size {largest};
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
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
}}
"""


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
        configuration = folder / "nginx.conf"
        user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
        configuration.write_text(
            _CONFIGURATION.format(module=_MODULE, user=user, folder=folder, port=port, largest=largest)
        )
        super().__init__(
            ["/usr/sbin/nginx", "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")],
            ready=lambda: answers(self.url, method="OPTIONS"),
            log=folder / "output.log",
        )
