"""How mail programs word their letters: signs of a bounce, what precedes a recipient, where the returned mail begins.

Data for letter.py. Each row names the programs that write so; the tests have an example for each.
"""

# ruff: noqa: E501 - data: a phrase, a pattern or a sentence is read best in one line
from __future__ import annotations

import re

from relayd.core.bounce.addresses import ADDRESS

# --- signs that a mail tells of a failure. Lower-case texts that stand in the letter, by the programs that write them.
OPENINGS: dict[str, tuple[str, ...]] = {
    "postfix": ("your message could not", "i'm sorry to have to inform you", "mail delivery system at host"),
    "exim": (
        "could not be delivered to", "the following address(es) failed", "has not yet been delivered to",
        "this message was created automatically by", "message was automatically rejected",
    ),
    "sendmail": (
        "the following addresses had", "transcript of session follows", "the following addresses have",
        "could not be delivered for", "the following recipients", "unsent message follows",
    ),
    "qmail": ("i wasn't able to deliver", "this is the qmail-send program", "unable to deliver your message"),
    "exchange": (
        "did not reach the following", "delivery has failed to these", "could not be delivered to the following",
        "delivery to the following", "unable to deliver message to", "couldn't be delivered",
        "rejected your message to",
        "your message wasn't delivered", "diagnostic information for administrators",
    ),
    "domino": ("was not delivered to", "not listed in domino directory", "not listed in public name"),
    "gmail": (
        "delivery to the following recipient", "there was a problem delivering your message", "wasn't delivered to",
        "could not be delivered", "technical details of permanent failure", "message blocked", "address not found",
    ),
    "yahoo, x2": ("unable to deliver message to the following", "we were unable to deliver your message"),
    "courier": ("this is a delivery status notification from", "undeliverable mail", "delivery to this address"),
    "opensmtpd": ("an error has occurred while attempting to deliver", "a message is delayed for more than"),
    "dragonfly": ("there was an error delivering your mail",),
    "mailfoundry": ("unable to deliver message to:", "delivery failed for the following reason"),
    "messaging server": ("your message cannot be delivered to", "cannot be delivered", "has been delayed"),
    "notes": ("not delivered to", "could not be delivered"),
    "surfcontrol, mailmarshal": (
        "your message could not be sent", "failed to send to identified host", "cannot be delivered to",
        "could not deliver", "your message was not delivered",
    ),
    "mcafee": ("had delivery problems",),
    "amavis": ("was not relayed to", "was not delivered to", "nondelivery report"),
    "mimecast": ("could not be delivered. the problem appears to be", "delivery failure notification"),
    "activehunter, x1": ("had delivery errors", "had permanent fatal errors", "had transient"),
    "zoho": ("cannot be delivered to", "this message was created automatically by mail delivery"),
    "gmx": ("a message that you sent could not be delivered", "the following address failed", "failed to deliver"),
    "x6": ("we had trouble delivering your message", "permanent errors"),
    "others": (
        "undeliverable", "undelivered", "delivery failed", "delivery failure", "failed delivery", "not deliver",
        "unable to deliver", "could not be delivered", "cannot be delivered", "message was rejected", "returned mail",
        "mail could not be", "message has been rejected", "non-delivery", "was rejected", "could not send",
        "error occurred while trying to deliver", "message not delivered", "has been returned", "problem delivering",
        "not be delivered", "is not a valid", "failed permanently", "bounced", "loop alert", "duplicated message-id", "not been delivered", "error message below",
    ),
    "in french, german, spanish, italian, portuguese": (
        "n'a pas pu être", "n'a pu être", "konnte nicht", "nicht zugestellt", "unzustellbar", "no se pudo",
        "no se ha podido", "non è stato possibile", "não foi possível", "не может быть доставлено",
    ),
    "in japanese": (
        "送信できません", "配信できません", "届けできません", "送信に失敗", "配信に失敗", "配送できません", "見つかりません",
        "エラーのため", "送信先メールアドレス", "宛先不明", "返送", "配信エラー", "送信エラー",
    ),
}  # fmt: skip

SUBJECT = re.compile(
    r"undeliver|\[bounce\]|returned (?:mail|to sender)|return(?:ed)? mail|failure notice|failure delivery|delivery (?:status|fail|notif|err"
    r"|problem|report|has failed)|(?:mail|message|e-?mail)(?: delivery)? (?:fail|error|system error|could not)|failed delivery|mail delivery"
    r"|could ?n[o']t (?:send|deliver|be)|(?:not|un)(?: be)? ?delivered|nondeliver|non-deliver|cannot send|warning: (?:message|could)"
    r"|warning--could|dsn\b|undelivered|delay(?:ed)?\b|error sending your mail|notification de|loop alert|there was an error"
    r"|unzustellbar|não entregue|no se (?:pudo|ha)|non recapit|配信|送信|返送|エラー|不達|未送達|宛先|не доставлено|退信",
    re.IGNORECASE,
)
AUTHOR = re.compile(
    r"mailer-?daemon|mail[ -]?deliver|post[-_ ]?master|mdaemon|mail[ -]?system|mail administrator|daemon@|system administrator"
    r"|bounce|microsoft outlook|mail[ _-]?router|-(?:admin|request|owner)@|@(?:[a-z0-9-]{1,40}\.){0,4}(?:auone-net|dion|ezweb)\.|mmsc|mail-?delivery",
    re.IGNORECASE,
)
DAEMON = re.compile(r"mailer-?daemon|postmaster@|mail delivery (?:sub)?system|mail system", re.IGNORECASE)
"""Those of them that nobody else calls himself."""
DELAY = (
    "has not yet been delivered", "is delayed", "has been delayed", "delivery delayed", "warning message only",
    "temporary failure report", "will keep trying", "still undelivered", "still trying", "no action is required",
    "delivery attempts will continue", "not need to re-send", "not need to resend", "could not send mail for past",
    "warning: message", "delay reason", "message will be retried",
)  # fmt: skip

# --- where the returned mail begins: a whole line, or its start
ORIGINAL_STARTS = (
    "below is a copy of", "here is a copy", "the following is a copy", "this is a copy of", "original message headers",
    "original message:", "original message follows", "original mail as follows", "message headers follow",
    "message header follows", "copy of the original", "the headers of the original", "the header of the original",
    "received: from", "received: by", "received: via", "return-path: <", "x-received:", "arc-seal:", "dkim-signature:",
    "元のメッセージ", "元のメール", "送信されたメール",
)  # fmt: skip
RULED = re.compile(
    r"-{2,}[^\n]{0,60}?(?:original|returned|unsent|undelivered|copy of|below this line|message follows|headers? (?:follow|of)"
    r"|your message|mail info|元の|以下)"
)
"""A line of dashes with words in it, in lower case."""

# --- recipients
LINE = re.compile(
    r"^[ \t>]{0,12}(?:(?:\*|--|-|>>>|\d{1,3}[.)])\s{1,4})?(?P<code>[45]\d\d (?:[45]\.\d\.\d )?)?[<'\"]?(?:mailto:)?(?P<address>"
    + ADDRESS
    + r")['\">]?"
    r"(?=$|[\s:;,.<>\[\](])(?P<rest>.*)$"
)
"""A line that begins with an address."""
LABELLED = re.compile(
    r"^[ \t>*-]{0,12}(?:in:\s{1,4})?(?:failed |final[ -]|original[ -]|intended |invalid |unknown )?(?:recipients?(?: address(?:es)?)?|addressed to|addressee|to|rcpt to|user|address(?:es)?|(?:e-?mail|mail)(?: address)?"
    r"|for|destinat(?:ion|aire|ario)|empf(?:ä|ae)nger|宛先|送信先|送信先メールアドレス|宛先アドレス|收件人|收件人邮件地址)(?:\(s\))?\s*[:=：]\s*(?:rfc822;\s*)?[^\n@<]{0,40}?<?(?P<address>"
    + ADDRESS
    + r")>?(?P<rest>.*)$",
    re.IGNORECASE,
)
"""A line that names what follows."""
SENTENCE = re.compile(
    r"(?:deliver(?:ing|ed|y)?|send|sent|sending|reach(?:ed)?|mail|message(?:-id)?|e-?mail|address(?:ed)?|recipients?|relayed|group|inbox|account|errors|mailbox|user)"
    r"(?:[ \t][^\s@<]{1,30}){0,8}?(?:[ \t]*:?[ \t]+|(?<=TO):|(?<=to):)[<(\"']?(?P<address>" + ADDRESS + r")[>)\"']?",
    re.IGNORECASE,
)
"""A sentence that tells which recipient is meant."""
EXPANDED = re.compile(
    r"\((?:expanded from|generated (?:from|by)|ultimately generated from):?\s*<?(?P<address>" + ADDRESS + ")"
)

# --- at which command the other side refused
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dot", (
        "end of data", "(state 15)", "(state 16)", "(state 17)", "(state 18)", "(data)", "body of the message",
        "data (end", "in reply to end", "in reply to bdat", "message data", "last_data", "end of message", "final dot",
        "did not like our .", "after data", "text command", "smtp command data",
    )),
    ("rcpt", (
        "rcpt to", "rcpt_to", "rcpt-to", "rcpt command", "rcpt:", "(state 13)", "(state 14)", "rejected address",
        "does not like recipient", ">: user unknown", "recipient command", "[rcpt", "reply to rcpt",
    )),
    ("mail", ("mail from", "mail_from", "mail command", "sender address rejected", "does not like sender")),
    ("ehlo", (
        "after ehlo", "after helo", "ehlo command", "helo command", "ehlo handshake", "helo handshake",
        "in reply to ehlo", "in reply to helo", "sending ehlo", "sending helo", "[ehlo]", "[helo]",
    )),
    ("connect", (
        "initial connection", "refused to talk to me", "initial server greeting", "but connection died",
        "but greeting failed", "but my name was rejected", "does not like me", "[conn]", "[connect]",
        "initial greeting",
        "[greeting]",
    )),
    ("data", ("in reply to data", "reply to data command", ">>> data", "data command", "did not like our data",
    "[data]")),
)  # fmt: skip
"""Texts in lower case; the first stage that has one of them counts."""
