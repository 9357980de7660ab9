"""The classes of failures: what each means, who must act, what is told to the support desk, its numbers elsewhere.

Which replies belong to which class is rules.py's to say; docs/bounces.md is generated from this table.
"""

# ruff: noqa: E501 - data: a phrase, a pattern or a sentence is read best in one line
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReplyClass(StrEnum):
    """What a reply or a bounce means for people and statistics. The ids are stable."""

    USER_UNKNOWN = "user-unknown"
    USER_MOVED = "user-moved"
    MAILBOX_DISABLED = "mailbox-disabled"
    MAILBOX_FULL = "mailbox-full"
    HOST_UNKNOWN = "host-unknown"
    NO_SUCH_DOMAIN_MAIL = "no-such-domain-mail"
    ADDRESS_SYNTAX = "address-syntax"
    MESSAGE_TOO_BIG = "message-too-big"
    CONTENT_REJECTED = "content-rejected"
    SPAM_DETECTED = "spam-detected"
    VIRUS = "virus"
    SENDER_REJECTED = "sender-rejected"
    REPUTATION_BLOCKED = "reputation-blocked"
    REVERSE_DNS_MISSING = "reverse-dns-missing"
    AUTHENTICATION_FAILED = "authentication-failed"
    """Of the message: SPF, DKIM, DMARC."""
    LOGIN_REFUSED = "login-refused"
    """Of relayd at its upstream: AUTH."""
    POLICY = "policy"
    RELAYING_DENIED = "relaying-denied"
    RATE_LIMITED = "rate-limited"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    GREYLISTED = "greylisted"
    FILTERED = "filtered"
    """By the recipient's own filter."""
    NETWORK_ERROR = "network-error"
    TLS_FAILED = "tls-failed"
    PROTOCOL_ERROR = "protocol-error"
    SYSTEM_ERROR = "system-error"
    SYSTEM_FULL = "system-full"
    MAILER_ERROR = "mailer-error"
    EXPIRED = "expired"
    ON_HOLD = "on-hold"
    COMPLAINT = "complaint"
    VACATION = "vacation"
    DELIVERED = "delivered"
    UNKNOWN = "unknown"


class Actor(StrEnum):
    """Who has to do something before such mail can arrive."""

    SENDER = "sender"
    RECIPIENT = "recipient"
    UPSTREAM = "upstream"
    NOBODY = "nobody"


class Blocks(StrEnum):
    """Whether addresses of a class are mailed again."""

    AT_ONCE = "at once"
    REPEATED = "after repeats"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """One class."""

    hard: bool
    """The address will not work again by itself."""
    actor: Actor
    blocks: Blocks
    status: str
    """RFC 3463 (and RFC 7372, 7505) code for failures that came without one. Only its last two parts where temporary."""
    cmc_status: int
    """Customers Mail Cloud's status number, 1 to 11, or 99."""
    anymail_reason: str
    """django-anymail's reject reason; "" where nothing failed."""
    sentence_en: str
    sentence_ja: str


_SENDER, _RECIPIENT, _UPSTREAM, _NOBODY = Actor.SENDER, Actor.RECIPIENT, Actor.UPSTREAM, Actor.NOBODY
_AT_ONCE, _REPEATED, _NEVER = Blocks.AT_ONCE, Blocks.REPEATED, Blocks.NEVER
_C = ReplyClass

CLASSES: dict[ReplyClass, ClassFacts] = {
    _C.USER_UNKNOWN: ClassFacts(
        True, _RECIPIENT, _AT_ONCE, "5.1.1", 2, "bounced",
        "There is no such mailbox. Check the spelling of the address, or ask the customer for the current one by phone.",
        "宛先のメールアドレスは存在しません。つづりの誤りがないか確認し、お客様に電話などで現在のアドレスをお尋ねください。",
    ),
    _C.USER_MOVED: ClassFacts(
        True, _RECIPIENT, _AT_ONCE, "5.1.6", 2, "bounced",
        "The recipient has moved and no longer reads this mailbox. Ask the customer for the new address.",
        "宛先の方はすでに別のメールアドレスへ移られています。お客様に新しいアドレスをお尋ねください。",
    ),
    _C.MAILBOX_DISABLED: ClassFacts(
        False, _RECIPIENT, _REPEATED, "5.2.1", 2, "bounced",
        "The mailbox exists but is suspended or no longer used. Ask the customer for another address.",
        "宛先のメールボックスは停止中か、長期間使われていません。お客様に別のアドレスをお尋ねください。",
    ),
    _C.MAILBOX_FULL: ClassFacts(
        False, _RECIPIENT, _REPEATED, "5.2.2", 5, "bounced",
        "The mailbox is full. Try again in a few days; tell the customer by phone.",
        "宛先のメールボックスがいっぱいで受信できません。数日おいて再送し、お急ぎの場合はお客様に電話でお知らせください。",
    ),
    _C.HOST_UNKNOWN: ClassFacts(
        True, _RECIPIENT, _AT_ONCE, "5.1.2", 1, "bounced",
        "The part of the address behind the @ does not exist. Check its spelling with the customer.",
        "メールアドレスの「@」より後ろのドメインが存在しません。つづりをお客様にご確認ください。",
    ),
    _C.NO_SUCH_DOMAIN_MAIL: ClassFacts(
        True, _RECIPIENT, _AT_ONCE, "5.1.10", 1, "bounced",
        "The domain of the address takes no mail at all. Ask the customer for another address.",
        "宛先のドメインはメールを一切受け取らない設定です。お客様に別のアドレスをお尋ねください。",
    ),
    _C.ADDRESS_SYNTAX: ClassFacts(
        True, _SENDER, _AT_ONCE, "5.1.3", 9, "invalid",
        "The address is not written correctly. Correct it, or ask the customer how it is spelled.",
        "メールアドレスの書き方に誤りがあります。訂正するか、お客様に正しいつづりをご確認ください。",
    ),
    _C.MESSAGE_TOO_BIG: ClassFacts(
        False, _SENDER, _NEVER, "5.3.4", 8, "other",
        "The mail is too large for the recipient. Send it with smaller or fewer attachments, or send a link.",
        "メールのサイズが宛先の上限を超えています。添付ファイルを減らすか、リンクでお送りください。",
    ),
    _C.CONTENT_REJECTED: ClassFacts(
        False, _SENDER, _NEVER, "5.6.0", 4, "other",
        "The recipient's server did not like how the mail is made: an attachment, a header or its format. "
        "Ask the sender of the mail to change it.",
        "メールの内容(添付ファイル・ヘッダー・形式)が宛先のサーバーに受け付けられませんでした。送信元で内容を見直してください。",
    ),
    _C.SPAM_DETECTED: ClassFacts(
        False, _SENDER, _NEVER, "5.7.1", 4, "blocked",
        "The recipient's server took the mail for spam. Change its text and links, or ask the customer to allow the "
        "sender's address.",
        "宛先のサーバーが迷惑メールと判定しました。本文やリンクを見直すか、お客様に送信元アドレスの受信許可をお願いしてください。",
    ),
    _C.VIRUS: ClassFacts(
        False, _SENDER, _NEVER, "5.7.0", 4, "blocked",
        "The recipient's server found a virus in the mail. Check the attachment before anything is sent again.",
        "宛先のサーバーがメールからウイルスを検出しました。再送する前に添付ファイルを検査してください。",
    ),
    _C.SENDER_REJECTED: ClassFacts(
        False, _SENDER, _NEVER, "5.1.8", 4, "blocked",
        "The recipient's server does not accept the sender's address. Check that the sender's domain is set up for mail.",
        "差出人のアドレスが宛先のサーバーに拒否されました。差出人ドメインの設定(DNS など)を管理者にご確認ください。",
    ),
    _C.REPUTATION_BLOCKED: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.7.1", 4, "blocked",
        "The recipient's server blocks the machine that sent the mail because of its reputation. The address is fine; "
        "tell the operator of the mail service.",
        "送信に使ったサーバーが宛先側で遮断されています(IPアドレスの評価など)。アドレスに問題はありません。メール管理者へご連絡ください。",
    ),
    _C.REVERSE_DNS_MISSING: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.7.25", 4, "blocked",
        "The recipient's server wants a valid reverse DNS name for the machine that sent the mail. The address is fine; "
        "tell the operator of the mail service.",
        "送信サーバーの逆引きDNSの設定が理由で拒否されました。アドレスに問題はありません。メール管理者へご連絡ください。",
    ),
    _C.AUTHENTICATION_FAILED: ClassFacts(
        False, _SENDER, _NEVER, "5.7.26", 4, "blocked",
        "The mail could not prove that it comes from its sender (SPF, DKIM or DMARC). The address is fine; "
        "have the records of the sender's domain checked.",
        "差出人の認証(SPF・DKIM・DMARC)に失敗し拒否されました。アドレスに問題はありません。差出人ドメインの設定をご確認ください。",
    ),
    _C.LOGIN_REFUSED: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.7.8", 99, "other",
        "The upstream did not accept our login. The address is fine; tell the operator of the mail service.",
        "中継サーバーへのログインが拒否されました。アドレスに問題はありません。メール管理者へご連絡ください。",
    ),
    _C.POLICY: ClassFacts(
        False, _SENDER, _NEVER, "5.7.1", 4, "blocked",
        "The recipient's server has a rule against this mail. Ask the customer to have their mail administrator allow "
        "the sender.",
        "宛先のサーバーの運用ルールにより拒否されました。お客様を通じて、先方のメール管理者に受信許可をご依頼ください。",
    ),
    _C.RELAYING_DENIED: ClassFacts(
        False, _RECIPIENT, _NEVER, "5.7.1", 7, "blocked",
        "The server that should receive mail for this domain says it is not responsible for it. Ask the customer "
        "to tell their mail administrator.",
        "宛先ドメインの受信サーバーが「担当外」と応答しました。お客様を通じて、先方のメール管理者にご連絡ください。",
    ),
    _C.RATE_LIMITED: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.7.28", 4, "other",
        "Too much mail was sent in a short time. The address is fine; try again later.",
        "短時間に送られたメールが多すぎるため制限されました。アドレスに問題はありません。時間をおいて再送してください。",
    ),
    _C.TOO_MANY_CONNECTIONS: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.4.5", 4, "other",
        "The recipient's server has too many connections at the moment. The address is fine; try again later.",
        "宛先のサーバーへの接続が混み合っています。アドレスに問題はありません。時間をおいて再送してください。",
    ),
    _C.GREYLISTED: ClassFacts(
        False, _NOBODY, _NEVER, "4.7.1", 3, "other",
        "The recipient's server makes unknown senders wait and take a second try. Nothing needs to be done.",
        "宛先のサーバーが初めての送信元に再試行を求めています(グレーリスト)。特にしていただくことはありません。",
    ),
    _C.FILTERED: ClassFacts(
        False, _RECIPIENT, _REPEATED, "5.7.1", 4, "blocked",
        "The recipient's own filter refused the mail, as mobile carriers offer it, or the mailbox is gone. Ask the "
        "customer to allow the sender's domain.",
        "受信者側の受信設定(携帯会社の迷惑メールフィルターなど)で拒否されたか、アドレスが無効です。"
        "お客様に、送信元ドメインの受信許可(指定受信)の設定をお願いしてください。",
    ),
    _C.NETWORK_ERROR: ClassFacts(
        False, _NOBODY, _NEVER, "5.4.2", 7, "timed_out",
        "The recipient's server could not be reached, or the connection broke. Try again later.",
        "宛先のサーバーに接続できないか、通信が途切れました。時間をおいて再送してください。",
    ),
    _C.TLS_FAILED: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.7.10", 7, "other",
        "No encrypted connection (TLS) to the server could be made. The address is fine; tell the operator of the mail "
        "service.",
        "サーバーとの暗号化通信(TLS)が確立できませんでした。アドレスに問題はありません。メール管理者へご連絡ください。",
    ),
    _C.PROTOCOL_ERROR: ClassFacts(
        False, _UPSTREAM, _NEVER, "5.5.0", 7, "other",
        "The servers did not understand each other. The address is fine; tell the operator of the mail service.",
        "サーバー間のやり取りで手順の誤りが起きました。アドレスに問題はありません。メール管理者へご連絡ください。",
    ),
    _C.SYSTEM_ERROR: ClassFacts(
        False, _NOBODY, _NEVER, "5.3.0", 7, "other",
        "The recipient's server has a fault. Try again later; if it stays, tell the customer.",
        "宛先のサーバーに障害が起きています。時間をおいて再送し、続くようならお客様にお知らせください。",
    ),
    _C.SYSTEM_FULL: ClassFacts(
        False, _NOBODY, _NEVER, "5.3.1", 7, "other",
        "The disk of the recipient's server is full. Try again later; if it stays, tell the customer.",
        "宛先のサーバーの空き容量が不足しています。時間をおいて再送し、続くようならお客様にお知らせください。",
    ),
    _C.MAILER_ERROR: ClassFacts(
        False, _RECIPIENT, _NEVER, "5.3.0", 6, "other",
        "The mail reached the recipient's server, but a program or forwarding there failed. Tell the customer.",
        "宛先のサーバーには届きましたが、その先の転送や処理プログラムで失敗しました。お客様にお知らせください。",
    ),
    _C.EXPIRED: ClassFacts(
        False, _NOBODY, _NEVER, "4.4.7", 3, "timed_out",
        "The mail could not be handed over in the time allowed for it. Try again later; check the domain of the address.",
        "一定時間再送を続けましたが配信できていません。時間をおいて再送し、アドレスのドメインもご確認ください。",
    ),
    _C.ON_HOLD: ClassFacts(
        False, _RECIPIENT, _NEVER, "5.7.0", 99, "other",
        "The recipient's server keeps the mail back, or gave no usable reason. Ask the customer whether it arrived.",
        "宛先のサーバーで保留されているか、理由が明示されていません。お客様に届いているかご確認ください。",
    ),
    _C.COMPLAINT: ClassFacts(
        False, _SENDER, _AT_ONCE, "", 11, "spam",
        "The recipient reported a mail as spam. Do not send any more; ask before you write to them again.",
        "受信者が迷惑メールとして報告しました。以後の送信は控え、再開にはご本人の同意を得てください。",
    ),
    _C.VACATION: ClassFacts(
        False, _NOBODY, _NEVER, "", 99, "",
        "The mail arrived; the recipient answers automatically, for example while away.",
        "メールは届いています。不在通知などの自動応答が返ってきました。",
    ),
    _C.DELIVERED: ClassFacts(
        False, _NOBODY, _NEVER, "2.0.0", 99, "",
        "The mail was delivered.",
        "メールは配信されました。",
    ),
    _C.UNKNOWN: ClassFacts(
        False, _NOBODY, _REPEATED, "5.0.0", 99, "other",
        "The mail was not delivered, and no reason that we understand was given. The original words may tell more.",
        "メールは配信されませんでしたが、理由を判別できませんでした。相手サーバーの応答の原文をご確認ください。",
    ),
}  # fmt: skip
