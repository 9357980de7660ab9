"""docs/upstreams.md, made from presets.py: for each provider what to set up there, and the source of its figures."""

from __future__ import annotations

from relayd.config.failing_page import FAILING
from relayd.config.presets import PRESETS, Preset
from relayd.core.units import format_duration

_INTRO = """\
# Upstreams

<!-- Made by scripts/generate-docs from relayd/config/presets.py and preset_pages.py. Change it there. -->

An upstream is a provider's SMTP service. `preset:` fills host, ports, form of login and limits of those that relayd
knows; whatever you write beside it counts instead. `relayd upstream presets` lists them, `relayd config show` prints
what is in effect, `relayd upstream test NAME` tries it without sending mail.

```yaml
upstreams:
  bulk:
    preset: sendgrid
    password: !env SENDGRID_KEY
```

Figures are those that the named page of the provider gave when this was written. Your contract may say otherwise:
override them.

## Ports

`ports` is a list in order of preference. Where no connection comes about at one, the next is tried, and the one that
failed goes last for ten minutes. Each worker remembers this for itself, in memory. Port 25 is refused unless
`allow_port_25: true` stands beside it. TLS begins with the first octet on 465 and 2465, by STARTTLS elsewhere.

## Accounts

```yaml
upstreams:
  team:
    preset: office365
    accounts:
      - address: info@example.jp
        oauth: {flow: client-credentials, tenant: example.jp, client_id: ..., client_secret: !env TEAM_SECRET}
      - address: sales@example.jp
        oauth: {client_id: ...}          # relayd upstream login team --account sales@example.jp
```

Each account has its own login, limits and queue; the trouble of one pauses only that one. In logs, events and the queue
it is named `team/info@example.jp`; metrics are those of `team`. The envelope sender chooses the account: that of the
address, else that of the domain; for a null sender the domain of From does.
`per: address` binds a login to its mailbox, `per: domain` lets every sender of the domain share it. `per: address`
without accounts binds to the `username`, which must be an address then.

A sender without an account is refused when the mail comes in: `553 5.7.1`. With `rewrite_sender: true` it goes out as
the first account's mailbox: envelope sender and From are replaced, the old From becomes Reply-To where there is none,
`Sender` is taken out, and the mail is signed after that. Reports that relayd itself sends (null sender) take the first
account where no other fits.

`return_path: keep` sends the envelope sender of the app, `account` the mailbox that logs in (bounces go there; relayd
can read it, see `bounces.mailboxes`), `verp` an address of relayd's own for each recipient.

## Limits and budgets

```yaml
limits:
  messages: [30/min, 500/day]        # one window, or several
  recipients: 10000/day
  connections: 3
  messages_per_connection: 5000      # then the connection is closed, and another one opened
  recipients_per_message: 100        # a message with more is sent in several
```

`messages` and `recipients` are budgets: in *every* period of that length, wherever it begins, no more goes out. They
hold for all workers together and across restarts, `kill -9` included: a permit is on disk as spent before it is used.
Each transaction is one message. A worker leases a few permits at a time, five percent of the budget at most, and hands
back within a second what it does not need; of one that is killed those few count as used.

What counts is what providers count: recipients that the upstream had taken when the content followed, also where it
refused the content or fell silent then. What is refused at MAIL or RCPT, or never got there, costs nothing. A permit
comes back one period after the upstream's answer, so that the provider, whenever it counted, saw no more.

Mail over the budget waits where it is: no attempt is counted, no event written. `relayd upstream list`, `status`,
`queue show` and `why` say for which budget, and until when. `overflow` sends it elsewhere once a day is used up.

With `accounts` the budgets of the preset are those of each account, because providers count by mailbox; an account's
own `limits` say otherwise (`messages: []`: none). Budgets written under the upstream itself then hold for all accounts
together, beside those of each.

## OAuth2

`oauth:` stands in place of `password:`. relayd shows the token by XOAUTH2, or by OAUTHBEARER (RFC 7628) where only that
is offered.

| flow | for | needs |
|---|---|---|
| `refresh-token` | one person's mailbox | `client_id`, and `relayd upstream login NAME` (or `refresh_token`) |
| `client-credentials` | an application's right (Microsoft: SMTP.SendAsApp) | `client_id`, `client_secret`, `tenant` |
| `service-account` | all mailboxes of a Google Workspace, by domain-wide delegation | `key_file` |

`provider: microsoft` or `google` fills `token_url` and `scope`; with both of your own any provider will do.
`relayd upstream login` shows a code to type in a browser (Microsoft), or an address to open on the same machine
(Google; over SSH, forward the port that the address names).

Tokens are kept in `state.db`, encrypted with a key derived from `secret`: with another `secret` they are lost, and you
log in again. They are renewed ahead of time by one worker for all; a refresh token that the provider replaces is kept
before the new access token is used. No log, transcript or command shows any of them.

`relayd_upstream_credential_expires_seconds` says how long a login still lives. Two weeks before a refresh token (where
the provider says when) or a client secret (`client_secret_expires`) ends, a warning is logged, once a day.

When a password is changed or a consent revoked, that account alone is paused, and `relayd status` and the log say which
and what to do. Its mail waits, no attempt is counted, nothing bounces. Every few minutes one message tries again;
`relayd upstream test NAME` that succeeds ends the pause: new mail goes at once, what waits within five minutes.

"""
_PRESETS = "## Presets\n"


def reference() -> str:
    """The whole document."""
    return _INTRO + FAILING + _PRESETS + "".join(_section(preset) for preset in PRESETS.values())


def _section(preset: Preset) -> str:
    ports = ", ".join(str(port) for port in preset.ports)
    lines = [f"\n### {preset.name}: {preset.title}\n", f"`{preset.host}`, ports {ports} ({preset.source})."]
    if "REGION" in preset.name:
        lines.append("Write the region in the name: `preset: ses-eu-west-1`.")
    if preset.login:
        fixed = f" `username: {preset.username}` is filled." if preset.username else ""
        lines.append(f"Login: {preset.login}.{fixed}")
    if preset.per:
        where = "A login" if preset.per == "address" else "With `accounts`, a login"
        lines.append(f"{where} is bound `per: {preset.per}`.")
    if preset.figures or preset.throttles:
        lines += ["", "| what | source |", "|---|---|"]
        lines += [f"| {figure} | {source} |" for figure, source in preset.figures.items()]
        lines += [
            f"| rule: `{each.match}`: {each.action} for {format_duration(each.seconds)} | {each.source} |"
            for each in preset.throttles
        ]
    lines += ["", *(f"{place}. {step}" for place, step in enumerate(preset.setup, 1))]
    return "\n".join(lines) + "\n"
