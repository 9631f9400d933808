"""A message broker (Debian's package activemq), started by ``java`` itself:
Debian's own script leaves it running when it is stopped.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from pathlib import Path

from .process import ServerProcess, free_port

USER, PASSWORD = "listener", "a pass:word"
SENDER, SENDER_PASSWORD = "panda", "sends"
TOPIC = "/topic/panda_idds"

_HOME = Path("/usr/share/activemq")
_CLASSES = (
    (_HOME / "lib", "*.jar"),
    (_HOME / "lib/optional", "*.jar"),
    (Path("/usr/share/java"), "spring3-*.jar"),
    (Path("/usr/share/java"), "commons-logging.jar"),
    (Path("/usr/share/java"), "xbean-spring.jar"),
)
# Listeners may read the topic and nothing else.
_CONFIGURATION = """\
<beans xmlns="http://www.springframework.org/schema/beans"
       xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
       xsi:schemaLocation="http://www.springframework.org/schema/beans
         http://www.springframework.org/schema/beans/spring-beans.xsd
         http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
 <broker xmlns="http://activemq.apache.org/schema/core" brokerName="test" persistent="false" useJmx="false"
         advisorySupport="false" schedulerSupport="false" dataDirectory="{folder}/data">
  {tls}
  <plugins>
   <simpleAuthenticationPlugin><users>
    <authenticationUser username="{user}" password="{password}" groups="listeners"/>
    <authenticationUser username="{sender}" password="{sender_password}" groups="senders,listeners"/>
   </users></simpleAuthenticationPlugin>
   <authorizationPlugin><map><authorizationMap><authorizationEntries>
    <authorizationEntry queue=">" read="senders" write="senders" admin="senders"/>
    <authorizationEntry topic=">" read="senders" write="senders" admin="senders"/>
    <authorizationEntry topic="panda_idds" read="listeners" write="senders" admin="listeners"/>
   </authorizationEntries></authorizationMap></map></authorizationPlugin>
  </plugins>
  <transportConnectors>
   <transportConnector name="stomp" uri="stomp://127.0.0.1:{port}"/>
   {tls_connector}
  </transportConnectors>
 </broker>
</beans>
"""
_TLS = (
    '<sslContext><sslContext keyStore="file:{folder}/broker.p12" keyStorePassword="secret" '
    'keyStoreType="pkcs12"/></sslContext>'
)


class ActiveMQServer(ServerProcess):
    """A broker on the loopback interface; ``url`` is for
    ``PANDA_MESSAGES_URL``.

    It can be stopped and started again on the same port.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.port, self.tls_port = free_port(), free_port() if tls else 0
        self.url = f"stomp://127.0.0.1:{self.port}"
        self.tls_url = f"stomp+ssl://localhost:{self.tls_port}"
        self.authorities = folder / "ca.pem"
        if tls:
            _make_certificates(folder)
        connector = f'<transportConnector name="tls" uri="stomp+ssl://127.0.0.1:{self.tls_port}"/>'
        configuration = folder / "broker.xml"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder, port=self.port, user=USER, password=PASSWORD, sender=SENDER,
                sender_password=SENDER_PASSWORD, tls=_TLS.format(folder=folder) if tls else "",
                tls_connector=connector if tls else "",
            )
        )  # fmt: skip
        classes = ":".join(str(path) for place, names in _CLASSES for path in sorted(place.glob(names)))
        places = {"home": _HOME, "base": folder, "conf": folder, "data": folder / "data"}
        command = ["java", "-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += [f"-Dactivemq.{name}={place}" for name, place in places.items()]
        command += [
            "-cp",
            classes,
            "org.apache.activemq.console.Main",
            "start",
            f"xbean:file:{configuration}",
        ]
        super().__init__(command, ready=self._answers, log=folder / "output.log", seconds=90)

    def _answers(self) -> bool:
        """Whether somebody can log in; the port opens before that."""
        import stomp

        log = logging.getLogger("stomp.py")
        connection = stomp.StompConnection12([("127.0.0.1", self.port)], reconnect_attempts_max=1)
        log.disabled = True  # It says each time that nothing listens yet.
        try:
            connection.connect(SENDER, SENDER_PASSWORD, wait=True)
        except (stomp.exception.StompException, OSError):
            return False
        finally:
            log.disabled = False
        connection.disconnect()
        return True

    def send(self, *messages, topic: str = TOPIC) -> None:
        """Send messages as PanDA does: texts as they are, others as JSON."""
        import stomp

        connection = stomp.StompConnection12([("127.0.0.1", self.port)])
        connection.connect(SENDER, SENDER_PASSWORD, wait=True)
        for message in messages:
            body = message if isinstance(message, str) else json.dumps(message)
            connection.send(topic, body, headers={"persistent": "true"})
        connection.disconnect(receipt="all")
        while connection.is_connected():  # until the broker has taken all of them
            time.sleep(0.01)


def job_message(task_id, job_id, status, *, inputs=None, moment=1795165846):
    """Make a message as panda-server does (push_job_status_message)."""
    return {
        "computingsite": "SLAC_Rubin",
        "inputs": inputs,
        "piloterrorcode": 0,
        "piloterrordiag": None,
        "msg_type": "job_status",
        "jobid": job_id,
        "taskid": task_id,
        "status": status,
        "timestamp": moment,
    }


def task_message(task_id, status, *, moment=1795165846):
    """Make a message as JEDI does (push_task_status_message)."""
    return {"msg_type": "task_status", "taskid": task_id, "status": status, "timestamp": moment}


def _make_certificates(folder: Path) -> None:
    """Make an authority, and a certificate of ``localhost`` by it."""
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"openssl req -x509 {curve} -days 30 -keyout ca.key -out ca.pem -subj /CN=authority "
        "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
        f"openssl req {curve} -keyout broker.key -out broker.csr -subj /CN=localhost",
        "openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 "
        "-extfile extensions -out broker.pem",
        "openssl pkcs12 -export -in broker.pem -inkey broker.key -out broker.p12 -passout pass:secret",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
