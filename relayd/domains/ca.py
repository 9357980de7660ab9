"""The conversation with a CA by ACME (RFC 8555), by the `acme` library, which blocks: issuing.py gives steps a thread.

Steps are called one after the other. All raise CAError, worded for an operator; what follows is certificates.py's.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from josepy import errors as jose_errors
from josepy import jwa, jwk

from relayd import __version__
from relayd.config.fault import printable
from relayd.config.models import Acme
from relayd.domains.certificates import CAError

_TIMEOUT = 15
"""Seconds for one answer of the CA to begin, or go on."""
_FINALIZE = datetime.timedelta(seconds=60)
_NONCES = 4
_LONGEST = 600
"""Octets of a CA's words that are kept."""


class _Network(client.ClientNetwork):
    """Has another try where the CA did not like a nonce (RFC 8555 6.5): the library has one, and some are unlucky."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(_NONCES):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class Conversation:
    """One order, from the directory to the certificate."""

    def __init__(self, section: Acme, key: EllipticCurvePrivateKey, uri: str, account_email: str) -> None:
        """`key`, `uri`, `account_email`: of our account; uri "" where it is to be registered."""
        self.uri = uri
        """Of the account; known after `open`."""
        self._section = section
        self._host = urlsplit(section.directory).hostname or section.directory
        self._email = account_email
        # requests takes the path of a CA file as well, whatever the library's annotation says
        self._net = _Network(
            jwk.JWKEC(key=key),
            alg=jwa.ES256,
            verify_ssl=cast("bool", _trusted(section.ca_file)),
            user_agent=f"relayd/{__version__}",
            timeout=_TIMEOUT,
        )
        self._net.session.hooks["response"].append(self._heard)
        self._status, self._retry_after = 0, 0
        self._client: client.ClientV2 | None = None
        self._order: messages.OrderResource | None = None
        self._picked: list[messages.ChallengeBody] = []

    # -- the steps

    def open(self) -> None:
        """Read the directory, and register where that was not done yet."""
        with self._worded():
            directory = client.ClientV2.get_directory(self._section.directory, self._net)
            self._client = client.ClientV2(directory, self._net)
            if self.uri:
                self._net.account = messages.RegistrationResource(uri=self.uri, body=messages.Registration())
                if self._email != (self._section.email or ""):
                    self._client.update_registration(self._net.account, self._contact())
            else:
                self._register()

    def order(self, csr: bytes) -> dict[str, str]:
        """Order a certificate for a CSR in PEM; the challenges to answer: token → what is to stand there."""
        with self._worded():
            try:
                order = self._api.new_order(csr)
            except messages.Error as error:
                if error.code != "accountDoesNotExist":
                    raise
                self._register()  # it has forgotten us, as CAs for tests do
                order = self._api.new_order(csr)
            self._order = order
            waiting = [each for each in order.authorizations if each.body.status == messages.STATUS_PENDING]
            self._picked = [self._http(each) for each in waiting]
            key = self._net.key
            return {each.chall.encode("token"): each.chall.validation(key) for each in self._picked}

    def answer(self) -> None:
        """The answers stand there: let the CA look."""
        with self._worded():
            for each in self._picked:
                self._api.answer_challenge(each, each.chall.response(self._net.key))

    def pending(self) -> int:
        """Seconds to wait until asking again; 0: the CA has seen what it wanted to see."""
        with self._worded():
            for authorization in self._known_order.authorizations:
                seen, response = self._api.poll(authorization)
                if seen.body.status in {messages.STATUS_PENDING, messages.STATUS_PROCESSING}:
                    return max(1, min(_retry_after(response), 30))
                if seen.body.status != messages.STATUS_VALID:
                    raise CAError(self._told(_complaints(seen)))
        return 0

    def finalize(self) -> str:
        """The certificate with its chain, in PEM."""
        with self._worded():
            done = self._api.finalize_order(self._known_order, datetime.datetime.now() + _FINALIZE)
            return str(done.fullchain_pem)

    # -- how

    @property
    def _api(self) -> client.ClientV2:
        if self._client is None:
            raise CAError("the CA was not opened")
        return self._client

    @property
    def _known_order(self) -> messages.OrderResource:
        if self._order is None:
            raise CAError("nothing was ordered")
        return self._order

    def _contact(self) -> messages.Registration:
        return messages.Registration.from_data(email=self._section.email, contact=())

    def _register(self) -> None:
        if self._api.external_account_required():
            raise CAError(f"{self._host} wants an account made on its site (external account binding): take another CA")
        self._net.account = None
        wish = messages.NewRegistration.from_data(email=self._section.email, terms_of_service_agreed=True)
        try:
            self.uri = str(self._api.new_account(wish).uri)
        except errors.ConflictError as known:
            self.uri = known.location  # registered before, by a process that ended before it could keep that
            self._net.account = messages.RegistrationResource(uri=self.uri, body=messages.Registration())

    def _http(self, authorization: messages.AuthorizationResource) -> messages.ChallengeBody:
        for each in authorization.body.challenges:
            if isinstance(each.chall, challenges.HTTP01):
                return each
        raise CAError(f"{self._host} offers no proof over HTTP (http-01) for {authorization.body.identifier.value}")

    def _heard(self, response: requests.Response, *args: object, **kwargs: object) -> None:
        self._status, self._retry_after = response.status_code, _retry_after(response)

    def _told(self, text: str) -> str:
        return f"{self._host}: {printable(text, _LONGEST)}"

    @contextlib.contextmanager
    def _worded(self) -> Iterator[None]:
        """Turns what the libraries raise into words."""
        self._status, self._retry_after = 0, 0
        try:
            yield
        except messages.Error as error:
            text = " ".join(filter(None, (error.detail or error.title, f"({error.code or error.typ})")))
            raise CAError(
                self._told(text), retry_after=self._retry_after, limited=self._status == 429, down=self._status == 503
            ) from error
        except errors.TimeoutError as error:
            raise CAError(f"{self._host}: the certificate was not made in time") from error
        except requests.exceptions.SSLError as error:
            raise CAError(
                f"{self._host}: its certificate is not trusted (a CA of your own? Set tracking.acme.ca_file)"
            ) from error
        except requests.exceptions.Timeout as error:
            raise CAError(f"{self._host}: no answer within {_TIMEOUT} s") from error
        except requests.exceptions.RequestException as error:
            raise CAError(f"{self._host}: cannot be reached ({type(error).__name__})") from error
        except (errors.Error, jose_errors.Error, KeyError, AttributeError, TypeError, ValueError) as error:
            if self._status >= 400:
                raise CAError(
                    f"{self._host}: HTTP {self._status}", retry_after=self._retry_after, down=self._status == 503
                ) from error
            raise CAError(f"{self._host}: not the answer of an ACME directory ({type(error).__name__})") from error


def _trusted(ca_file: Path | None) -> str | bool:
    system = ssl.get_default_verify_paths().cafile
    return str(ca_file) if ca_file is not None else system or True


def _complaints(seen: messages.AuthorizationResource) -> str:
    found = [each.error for each in seen.body.challenges if each.error]
    return "; ".join(str(error.detail or error.typ) for error in found) or f"the proof is {seen.body.status.name}"


def _retry_after(response: requests.Response) -> int:
    """Seconds that the server wants to be left alone (RFC 9110 10.2.3); 0 where it does not say."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return int(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0
    return max(0, round(when.timestamp() - time.time()))
