"""A real Postfix as the remote side: it takes mail first and reports afterwards what became of it.

Mailboxes are virtual(8)'s. Its times are short, so that mail is late after one second and given up after six.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support.postfix import Instance

HOSTNAME = "mx.example.org"
SIZE = 50_000
"""Octets that it takes, and that a mailbox holds."""
NEXT_SIZE = 3000
"""Octets that the mail server behind BIG takes."""
HERE, FULL, AWAY = "here@example.org", "full@example.org", "away@example.org"
"""Mailboxes; of the second nothing is left."""
NOBODY = "nobody-of-that-name@example.org"
BIG, ONWARD, DEAD = "big@big.example.net", "onward@onward.example.net", "dead@dead.example.net"
"""Behind other mail servers: one that takes little, one that knows no DSN, one that does not answer."""

VACATION = shutil.which("vacation")
_USER = 65534
_LIFE = 6


class RemotePostfix(Instance):
    """`port` takes mail for all of these. What it reports goes to a mail server at `returns`."""

    def __init__(self, bounces: str, sender: str) -> None:
        """`bounces` is the domain whose mail goes to `returns`, and `sender` an address that is forwarded there."""
        super().__init__(2)
        self.port, self._small = self.ports
        self.returns = 0
        self._bounces, self._sender = bounces, sender
        # a port that is taken, so that nobody else gets it, and answers nobody
        self._dead = socket.socket()
        self._dead.bind(("127.0.0.1", 0))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._dead.close()

    def mailbox(self, address: str) -> Path:
        """The mbox file of an address."""
        return self.directory / "mail" / address.partition("@")[0]

    def answer_automatically(self, address: str, text: str) -> None:
        """Have vacation(1) look at the last mail of a mailbox, as a user's .forward does. `text`: header and body."""
        assert VACATION is not None
        folder = self.directory / "vacation"
        folder.mkdir()
        (folder / "message").write_text(text)
        # run by root, whom Postfix's sendmail lets choose a configuration: local(8) runs commands as the user
        subprocess.run(
            [VACATION, "-d", "-z", "-f", str(folder / "db"), "-m", str(folder / "message"), "-a", address, "root"],
            input=self.mailbox(address).read_bytes(),
            env=os.environ | {"MAIL_CONFIG": str(self.config)},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def _write(self) -> None:
        super()._write()
        mail = self.directory / "mail"
        mail.mkdir()
        os.chown(mail, _USER, _USER)
        full = self.mailbox(FULL)
        full.write_bytes(b"From someone@example.org Sun Nov 22 01:00:00 2026\n\n" + b"x\n" * (SIZE // 2 - 30))
        os.chown(full, _USER, _USER)

    def _settings(self) -> dict[str, object]:
        here = ", ".join(f"{{ {box} = {self.mailbox(box).name} }}" for box in (HERE, FULL, AWAY))
        ways = {
            "big.example.net": self._small,
            "onward.example.net": self.capture.port,
            "dead.example.net": self._dead.getsockname()[1],
            self._bounces: self.returns,
        }
        transports = ", ".join(f"{{ {domain} = smtp:[127.0.0.1]:{port} }}" for domain, port in ways.items())
        return {
            "myhostname": HOSTNAME,
            "mynetworks": "127.0.0.0/8",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            # found out after it was taken: that is the point
            "smtpd_reject_unlisted_recipient": "no",
            "message_size_limit": SIZE,
            "virtual_mailbox_limit": SIZE,
            "virtual_mailbox_domains": "example.org",
            "virtual_mailbox_maps": f"inline:{{ {here} }}",
            "virtual_mailbox_base": self.directory / "mail",
            "virtual_uid_maps": f"static:{_USER}",
            "virtual_gid_maps": f"static:{_USER}",
            "virtual_alias_maps": f"inline:{{ {{ {self._sender} = postmaster@{self._bounces} }} }}",
            "transport_maps": f"inline:{{ {transports} }}",
            "smtp_discard_ehlo_keywords": "dsn",
            "queue_run_delay": "1s",
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "1s",
            "delay_warning_time": "1s",
            "maximal_queue_lifetime": f"{_LIFE}s",
            "bounce_queue_lifetime": "1h",
        }

    def _doors(self) -> list[str]:
        return [
            f"127.0.0.1:{self.port} inet n - n - - smtpd",
            f"127.0.0.1:{self._small} inet n - n - - smtpd -o message_size_limit={NEXT_SIZE}",
            "pickup unix n - n 1 1 pickup",
            "virtual unix - n n - - virtual",
        ]
