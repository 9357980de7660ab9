"""The text of docs/bounces.md, made from the class table. scripts/generate-docs writes it."""

from __future__ import annotations

from relayd.core.classes import CLASSES, Actor, Blocks, ClassFacts, ReplyClass

_INTRODUCTION = """\
# Bounces: classes and what they mean

<!-- Made by scripts/generate-docs from relayd/core/classes.py. Change it there. -->

relayd gives every refused attempt and every mail that comes back one of these classes. `relayd bounce explain FILE`
shows the class of a mail, `relayd bounce explain --reply "550 5.1.1 …"` that of an SMTP reply.

- **hard**: the address will not work again by itself. A failure with a temporary code (4.y.z), and a report of a mere
  delay, are soft whatever their class.
- **who acts**: *sender*, who wrote or sent the mail; *recipient*, its addressee or their administrator; *upstream*,
  who runs the servers that send; *nobody*, it passes.
- **blocks**: whether relayd stops mailing the address: at once, after repeats within a window, or never.
- **RFC 3463**: the status shown where the other side gave none. It starts with 4 where the failure is temporary.
- **CMC**: status number of Customers Mail Cloud. **anymail**: reject reason of django-anymail.

The kinds of mail that come back: `bounce` (action `failed` or `delayed`), `delivery-report` (action `delivered`,
`relayed` or `expanded`; a read receipt is one too), `complaint`, `auto-reply`, and `not-a-report` for ordinary mail.
A feedback report in which nobody complains keeps the kind `complaint` with a class that blocks nothing:
`auth-failure` becomes `authentication-failed`, `not-spam` becomes `delivered`.

| class | hard | who acts | blocks | RFC 3463 | CMC | anymail |
|---|---|---|---|---|---|---|
"""


def reference() -> str:
    """The whole page."""
    rows = "".join(_row(cls, facts) for cls, facts in CLASSES.items())
    words = "".join(f"## {cls}\n\n{facts.sentence_en}\n\n{facts.sentence_ja}\n\n" for cls, facts in CLASSES.items())
    return f"{_INTRODUCTION}{rows}\nWhat the support desk is told:\n\n{words.rstrip()}\n"


def _row(cls: ReplyClass, facts: ClassFacts) -> str:
    actor: Actor = facts.actor
    blocks: Blocks = facts.blocks
    cells = (
        f"`{cls}`", "hard" if facts.hard else "soft", actor.value, blocks.value, facts.status or "–",
        str(facts.cmc_status), facts.anymail_reason or "–",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"
