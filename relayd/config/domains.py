"""The shape of `domains` and `tracking`: what DNS has to say before mail and links go out under a name."""

from __future__ import annotations

from pydantic import (
    Field,
)

from relayd.config.base import Model
from relayd.config.names import Address, Domain, Text
from relayd.config.places import URL, BindAddress, FilePath
from relayd.config.quantities import Count, Duration


class Domains(Model):
    """Sender domains (`relayd domain add`): what their records hold of ours, and how they are checked."""

    recheck: Duration = Field(
        3600.0, gt=0, description="How often the records of verified domains are looked at again, give or take a tenth."
    )
    grace: Duration = Field(
        72 * 3600.0, description="How long mail still goes out after a record of a verified domain has disappeared."
    )
    retire_after: Duration = Field(
        7 * 86400.0, description="How long the record of an old key must stay after a rotation."
    )
    resolvers: list[BindAddress] = Field(
        default_factory=list,
        description="Resolvers to ask as receivers would, in this order. Empty: those of /etc/resolv.conf.",
    )
    authoritative_port: Count = Field(
        53, ge=1, le=65535, description="Port of authoritative servers; another one is for test set-ups."
    )
    timeout: Duration = Field(3.0, gt=0, description="For one answer; each question is asked twice.")
    spf: list[Text] = Field(
        default_factory=list,
        description="Terms for the SPF records of sender domains that let our mail pass, like"
        " `include:_spf.example.com` or `ip4:192.0.2.1`. Empty: only what the provider demands.",
    )
    mail_host: Domain | None = Field(
        None, description="Host that takes the mail of return paths: the target of MX records. Absent: `hostname`."
    )
    zone: Domain | None = Field(
        None, description="Zone of our own that `relayd domain add --delegate` lets CNAMEs lead to. Absent: none."
    )


class Acme(Model):
    """Certificates for tracking hosts from a CA that speaks ACME (RFC 8555), proven over HTTP on port 80."""

    directory: URL = Field(
        "https://acme-v02.api.letsencrypt.org/directory", description="Where the CA's directory is; https."
    )
    agree_terms: bool = Field(
        False, description="You have read the CA's terms of service and agree to them. It issues nothing without."
    )
    email: Address | None = Field(None, description="Where the CA reaches you. Absent: it gets no address.")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the only CAs to trust for the directory itself. Absent: those of the system."
    )
    self_check: bool = Field(
        True,
        description="Before each order, look whether port 80 of the host leads here. `false`: where this machine cannot"
        " reach its own public address.",
    )
    http_port: Count = Field(
        80, ge=1, le=65535, description="Port that the CA looks at; another one is for test set-ups."
    )


class Tracking(Model):
    """Where links and opens are counted."""

    host: Domain | None = Field(
        None, description="Host that is used where no tracking domain fits, and that tracking domains lead to."
    )
    tls_host: Domain | None = Field(
        None, description="TLS front that tracking domains of three steps lead to in the end. Absent: `host`."
    )
    proof_zone: Domain | None = Field(
        None, description="Zone below which the TLS front expects proofs of ownership. Absent: `host`."
    )
    acme: Acme | None = Field(
        None,
        description="How `host` and the tracking domains of one step get their certificates. Absent: they get none.",
    )
