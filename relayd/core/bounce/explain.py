"""The way through a returned mail: what sort it is, which recipients it speaks of, and the verdict for each.

Pure: it changes nothing, and believes nothing that a forger could not have written. Whether a report concerns a mail
of ours is for those who act on it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from relayd.core.bounce import autoreply, complaint, letter, mime, notices, original, report, wordings
from relayd.core.bounce.addresses import ADDRESS, first_address
from relayd.core.bounce.letter import Letter, Said, codes, one_line
from relayd.core.bounce.mime import Part
from relayd.core.bounce.verdict import Action, Findings, Kind, Verdict
from relayd.core.classes import CLASSES, ReplyClass
from relayd.core.classify import find
from relayd.core.lifecycle import Stage
from relayd.core.reply import parse_reply
from relayd.core.rules import Row

_REPORT_TYPES = ("message/delivery-status", "message/global-delivery-status")
_ACTIONS = {action.value: action for action in Action if action.value}
_ADDRESSES = re.compile(ADDRESS)
_TAG = re.compile(r"<[^<>]{0,4000}>")
_BREAK = re.compile(r"<(?:br|/p|/div|/tr|/h\d|/li|p)\b[^<>]{0,500}>", re.IGNORECASE)
_GENERIC = re.compile(r"[245]\.0\.0|")
_VAGUE = frozenset({ReplyClass.UNKNOWN, ReplyClass.SYSTEM_ERROR, ReplyClass.PROTOCOL_ERROR, ReplyClass.HOST_UNKNOWN})
"""Classes that a report of a mere delay does not prove."""
_STATUSES = re.compile(r"(?<!\d)[245]\.[0-9]{1,3}\.[0-9]{1,3}(?!\d)")
_FIELDS = re.compile(r"^([A-Za-z-]{3,40}):[ \t]*([^\n]{0,500})", re.MULTILINE)
_UNCLEAR = frozenset({ReplyClass.UNKNOWN, ReplyClass.SYSTEM_ERROR})
_MAX_LETTERS = 3


def explain(content: bytes) -> list[Verdict]:
    """What a mail that came back means, for each recipient it speaks of; at least one verdict. Raises nothing."""
    return list(examine(content).verdicts)


def explain_reply(text: str) -> Verdict:
    """What a bare SMTP reply to RCPT means, such as "550 5.1.1 No such user". Raises ValueError where it is none."""
    found = re.match(r"\s*([2-5][0-9]{2})(?:[ -]|$)", text)
    if found is None:
        raise ValueError("a reply starts with its code: 550 5.1.1 No such user")
    code = int(found[1])
    cleaned = re.sub(rf"\n{code}[ -]", "\n", text[found.end() :].replace("\r\n", "\n").replace("\\n", "\n"))
    reply = parse_reply(code, cleaned)
    row = find(code, reply.enhanced, reply.text, Stage.RCPT)
    cls = row.cls if row else ReplyClass.UNKNOWN
    action = Action.DELIVERED if code < 300 else Action.FAILED if code >= 500 else Action.DELAYED
    kind = Kind.DELIVERY_REPORT if code < 300 else Kind.BOUNCE
    status = reply.enhanced or _status(cls, action, code)
    hard = CLASSES[cls].hard and code >= 500 and not status.startswith("4")
    return Verdict("", kind, action, cls, hard, status, code, one_line(reply.text))


def examine(content: bytes) -> Findings:
    """Like `explain`, with what the mail is as a whole. Raises nothing."""
    return _examine(mime.read(content), 0)


def _examine(root: Part, depth: int) -> Findings:
    """Look for one sort of mail after the other, the surest signs first."""
    texts = _letters(root)
    words = letter.read(texts[0] if texts else "")
    returned = original.fields_of(root, words.rest)
    about = original.message_id(returned, texts[0] if texts else "")
    mail = _Mail(root, texts, words, returned, about)
    for look in (_as_complaint, _as_report, _as_notice, _as_receipt):
        found = look(mail)
        if found is not None:
            return found
    sure = _is_bounce(mail)
    if sure:
        wrapped = _as_wrapped(mail, depth)
        if wrapped is not None:
            return wrapped
        verdicts = _by_letter(mail)
        # with few signs, some reason has to be there that a mail server would give
        if sure > 1 or any(each.reply_code or each.cls is not ReplyClass.UNKNOWN for each in verdicts):
            return Findings(Kind.BOUNCE, tuple(verdicts))
    if autoreply.is_one(root, words.text):
        return _as_auto_reply(mail)
    return Findings(Kind.NOT_A_REPORT, (Verdict("", Kind.NOT_A_REPORT),))


@dataclass(frozen=True, slots=True)
class _Mail:
    """What came back, taken apart."""

    root: Part
    texts: list[str]
    words: Letter
    returned: dict[str, str]
    about: str
    """Message-ID of the returned mail."""


@dataclass(slots=True)
class _Told:
    """What a report tells about one recipient."""

    recipient: str
    action: Action = Action.FAILED
    diagnostic: str = ""
    status: str = ""
    stage: Stage | None = None
    host: str = ""
    said: Said | None = None
    """What the letter says about it."""
    program: bool = False
    """A program that the mail was given to failed, says the type of the diagnostic."""


# --- the parts


def _letters(root: Part) -> list[str]:
    """What is written for people, the first text first; HTML only where there is no other."""
    plain: list[str] = []
    marked: list[str] = []
    for part in root.walk():
        if part.parts or part.type.startswith("message/") or part.type.startswith("text/rfc822-header"):
            continue
        if part.type == "text/html":
            if not plain and len(marked) < _MAX_LETTERS:
                marked.append(_unmarked(part.text()))
        elif part.type.startswith(("text/", "multipart/")) and len(plain) < _MAX_LETTERS:
            text = part.text()
            if text.strip():
                plain.append(text)
    return plain or marked


def _unmarked(text: str) -> str:
    """The text of HTML: what stands in styles and scripts left out, blocks on lines of their own."""
    for name in ("style", "script"):
        text = _without(text, f"<{name}", f"</{name}")
    return html.unescape(_TAG.sub(" ", _BREAK.sub("\n", text)))


def _without(text: str, opening: str, closing: str) -> str:
    lower = text.lower()
    if opening not in lower or len(lower) != len(text):
        return text
    out, position = [], 0
    while (start := lower.find(opening, position)) >= 0:
        out.append(text[position:start])
        end = lower.find(closing, start)
        if end < 0:
            return "".join(out)
        position = end
    return "".join([*out, text[position:]])


def _report(root: Part, texts: list[str]) -> report.Report | None:
    """The fields of a delivery report, from the part made for them or from a letter that has them."""
    part = next((part for part in root.walk() if part.type in _REPORT_TYPES), None)
    if part is not None:
        return report.parse(part.text())
    for text in texts:
        if report.looks_like_one(text):
            found = report.parse(text[: letter.end_of(text)])
            if found.blocks:
                return found
    return None


def _is_bounce(mail: _Mail) -> int:
    """How many signs there are that a mail server wrote it, for what has no usable report; 0 where it is no bounce."""
    root, words = mail.root, mail.words
    author = root.text_value("from").strip()
    has_report = any(part.type in _REPORT_TYPES for part in root.walk())
    failed = bool(root.value("x-failed-recipients"))
    by_machine = (
        bool(wordings.AUTHOR.search(author) or author in ("<>", ""))
        + bool(wordings.DAEMON.search(author))
        + (root.value("return-path").strip() == "<>")
        + root.value("auto-submitted").strip().lower().startswith("auto-")
        + (root.parameters.get("report-type", "").lower() == "delivery-status")
        + failed
        + has_report
    )
    worded = bool(wordings.SUBJECT.search(root.text_value("subject"))) + words.opening + failed + has_report
    told = bool(words.said or words.opening or has_report or failed)
    # shops and carriers of parcels write about deliveries, too: some sign of a mail system has to be there
    return by_machine if worded > 0 and told and root.fields else 0


# --- the sorts


def _as_complaint(mail: _Mail) -> Findings | None:
    found = complaint.read(mail.root, mail.words.text, mail.returned)
    if found is None:
        return None
    said = one_line(f"Feedback-Type: {found.type}" + (f"; {found.reporter}" if found.reporter else ""))
    verdicts = tuple(
        Verdict(recipient, Kind.COMPLAINT, cls=found.cls, diagnostic=said, message_id=mail.about)
        for recipient in found.recipients or ("",)
    )
    return Findings(Kind.COMPLAINT, verdicts)


def _as_report(mail: _Mail) -> Findings | None:
    found = _report(mail.root, mail.texts)
    if found is None or not found.blocks:
        return None
    verdicts = _by_report(mail, found)
    return Findings(_kind(verdicts), tuple(verdicts))


def _as_notice(mail: _Mail) -> Findings | None:
    told = [_noticed(notice, mail) for text in mail.texts[:1] for notice in notices.read(text)]
    return Findings(_kind(told), tuple(told)) if told else None


def _as_receipt(mail: _Mail) -> Findings | None:
    """A read receipt (RFC 8098) proves that the mail arrived."""
    part = next((part for part in mail.root.walk() if part.type == "message/disposition-notification"), None)
    if part is None:
        return None
    fields = {name.lower(): value for name, value in _FIELDS.findall(part.text(8000))}
    recipient = report.typed_address(fields.get("final-recipient", "")) or first_address(mail.root.text_value("from"))
    about = mail.about or next(iter(original.MESSAGE_ID.findall(fields.get("original-message-id", ""))), "")
    said = one_line(f"Disposition: {fields.get('disposition', '')}")
    return Findings(Kind.DELIVERY_REPORT, (_delivered(_Told(recipient, Action.DELIVERED, said), about),))


def _as_wrapped(mail: _Mail, depth: int) -> Findings | None:
    """A gateway put the report that it got into a mail of its own."""
    if mail.words.said or depth:
        return None
    part = next((part for part in mail.root.walk() if part.type == "message/rfc822" and part is not mail.root), None)
    inner = None if part is None else mime.opened(part)
    if inner is None or inner.type != "multipart/report":
        return None
    found = _examine(inner, depth + 1)
    return None if found.kind is Kind.NOT_A_REPORT else found


def _as_auto_reply(mail: _Mail) -> Findings:
    author = first_address(mail.root.text_value("from"))
    answered = mail.about or next(iter(original.MESSAGE_ID.findall(mail.root.value("in-reply-to"))), "")
    said = one_line(mail.words.text, 300)
    verdict = Verdict(author, Kind.AUTO_REPLY, cls=ReplyClass.VACATION, diagnostic=said, message_id=answered)
    return Findings(Kind.AUTO_REPLY, (verdict,))


# --- the verdicts


def _kind(verdicts: list[Verdict]) -> Kind:
    return next((verdict.kind for verdict in verdicts if verdict.kind is Kind.BOUNCE), verdicts[0].kind)


def _noticed(notice: notices.Notice, mail: _Mail) -> Verdict:
    """The verdict of a notice that came as JSON."""
    about = notice.message_id or mail.about
    if notice.type == "complaint":
        said = one_line(f"Feedback-Type: {notice.diagnostic or 'abuse'}")
        return Verdict(notice.recipient, Kind.COMPLAINT, cls=ReplyClass.COMPLAINT, diagnostic=said, message_id=about)
    action = Action.DELIVERED if notice.type == "delivery" else _ACTIONS.get(notice.action.lower(), Action.FAILED)
    told = _Told(notice.recipient, action, _diagnostic(notice.diagnostic), notice.status, None, notice.host)
    return _judge(told, None, about)


def _by_report(mail: _Mail, found: report.Report) -> list[Verdict]:
    verdicts: dict[tuple[str, Action], Verdict] = {}
    words = mail.words
    command = letter.refused_command(words.text)[0] if len(found.blocks) == 1 else None
    about = mail.about or next(iter(original.MESSAGE_ID.findall(found.message.get("original-message-id", ""))), "")
    for block in found.blocks:
        recipient = block.recipient
        said = next((each for each in words.said if each.recipient.lower() == recipient.lower()), None)
        if said is None and len(words.said) == 1 and len(found.blocks) == 1:
            said = words.said[0]
        if said is not None and block.get("diagnostic-code").lower().startswith("x-notes"):
            recipient = said.recipient  # Domino reports its own name for it; the letter has the one that we wrote
        told = _Told(
            recipient or _fallback(mail),
            _action(block, words),
            _diagnostic(block.get("diagnostic-code")),
            next(iter(_STATUSES.findall(block.get("status")[:100])), ""),
            command or (said.stage if said else None),
            block.remote or (said.host if said else ""),
            said,
            block.get("diagnostic-code")[:20].lower().startswith("x-unix"),
        )
        verdicts.setdefault((told.recipient.lower(), told.action), _judge(told, words, about))
    return list(verdicts.values())


def _action(block: report.Block, words: Letter) -> Action:
    word = re.match(r"[a-z]*", block.get("action").strip().lower())
    action = _ACTIONS.get(word[0] if word else "")
    if action is not None:
        return action
    return Action.DELAYED if words.delayed or block.get("status").startswith("4") else Action.FAILED


def _diagnostic(value: str) -> str:
    """The words of a Diagnostic-Code: without its type; "" where there is but the exit code of a program."""
    kind, semicolon, text = value.partition(";")
    words = one_line(text if semicolon and len(kind) < 30 and " " not in kind.strip() else value)
    return "" if words.isdigit() and words[0] not in "45" else words


def _by_letter(mail: _Mail) -> list[Verdict]:
    """Of a mail that is a bounce but has no fields; at least one verdict."""
    root, words = mail.root, mail.words
    action = Action.DELAYED if words.delayed else Action.FAILED
    said = words.said
    for text in mail.texts[1:]:
        said = said or letter.read(text).said
    correspondents = {first_address(root.text_value("to")), first_address(root.text_value("from"))}
    said = [each for each in said if each.recipient not in correspondents] or said
    if not said:
        failed = [first_address(each) for each in root.value("x-failed-recipients").split(",")[:100]]
        said = [Said(each) for each in failed if each] or [Said(_fallback(mail))]
    command = None
    if len(said) == 1:  # what the letter tells elsewhere is about this one, too
        command = letter.refused_command(words.text)[0] or said[0].stage or letter.stage_of(one_line(words.text, 2000))
    return [
        _judge(_Told(each.recipient, action, "", "", command or each.stage, each.host, each), words, mail.about)
        for each in said
    ]


def _fallback(mail: _Mail) -> str:
    """Where the report names nobody: its header, a letter with one name, or whom the mail went to."""
    failed = first_address(mail.root.value("x-failed-recipients"))
    if failed:
        return failed
    if len(mail.words.said) == 1:
        return mail.words.said[0].recipient
    for name in ("x-envelope-to", "x-actual-recipient", "to"):
        addresses = _ADDRESSES.findall(mail.returned.get(name, "")[:2000])
        if len(addresses) == 1:
            return first_address(addresses[0])
    return ""


def _delivered(told: _Told, about: str) -> Verdict:
    return Verdict(
        told.recipient,
        Kind.DELIVERY_REPORT,
        told.action,
        ReplyClass.DELIVERED,
        status=told.status or CLASSES[ReplyClass.DELIVERED].status,
        diagnostic=told.diagnostic,
        remote_mta=told.host,
        message_id=about,
    )


def _judge(told: _Told, words: Letter | None, about: str) -> Verdict:
    """Judge by what the fields say, then by what the letter says of the recipient, then by the whole letter."""
    if told.action in (Action.DELIVERED, Action.RELAYED, Action.EXPANDED):
        return _delivered(told, about)
    cls, reply, status, diagnostic = ReplyClass.UNKNOWN, None, told.status, told.diagnostic
    first = ""
    for text in _candidates(told, words):
        first = first or text
        found = codes(text)
        reply = reply or found.reply
        status = _better(status, found)
        row = _row(text, found, reply or 0, status, told)
        if row is not None:
            cls, diagnostic = row.cls, diagnostic or text
            break
    diagnostic = diagnostic or first
    if told.program and cls in _UNCLEAR:
        cls = ReplyClass.MAILER_ERROR
    if told.action is Action.DELAYED and cls in _VAGUE:
        cls = ReplyClass.EXPIRED
    status = status or _status(cls, told.action, reply)
    hard = CLASSES[cls].hard and told.action is Action.FAILED and not status.startswith("4")
    return Verdict(told.recipient, Kind.BOUNCE, told.action, cls, hard, status, reply, diagnostic, told.host, about)


def _row(text: str, found: letter.Codes, reply: int, status: str, told: _Told) -> Row | None:
    """The rule for a reason: what the other server said decides, before what is said around it."""
    stage = told.stage or letter.stage_of(text)
    for part in (text[found.start :], text) if found.start else (text,):
        row = find(found.reply or reply, status, part, stage, bounce=True)
        if row is not None and (row.text or part is text):
            return row
    return None


def _candidates(told: _Told, words: Letter | None) -> Iterator[str]:
    """Texts that may tell the reason, the most exact first. None at all: "", for what the status alone tells."""
    seen = {""}
    for text in _texts(told, words):
        if text not in seen:
            seen.add(text)
            yield text
    if len(seen) == 1 and told.status:
        yield ""


def _texts(told: _Told, words: Letter | None) -> Iterator[str]:
    yield told.diagnostic
    if words is None:
        return
    alone = len(words.said) < 2
    if alone:
        yield letter.refused_command(words.text)[1]
    reply = letter.reply_line(words.text) if alone else ""
    reason = told.said.reason if told.said is not None else ""
    yield from (reason, reply) if codes(reason).reply or not reply else (reply, reason)
    if alone:
        yield one_line(words.text, 2000)


def _better(status: str, found: letter.Codes) -> str:
    """Of the status that is reported and that in the words of the server, the one that says more."""
    if not found.status:
        return status
    if found.quoted or not status or (_GENERIC.fullmatch(status) and not _GENERIC.fullmatch(found.status)):
        return found.status
    if status in ("4.4.7", "5.4.7") and not _GENERIC.fullmatch(found.status):
        return found.status  # given up; why, the other server said
    if status.endswith(".0") and not found.status.endswith(".0") and found.status[0] == status[0]:
        return found.status
    return status


def _status(cls: ReplyClass, action: Action, reply: int | None) -> str:
    """The code for a failure that came without one."""
    status = CLASSES[cls].status
    if not status or status[0] == "2":
        return status
    temporary = action is Action.DELAYED or (reply is not None and 400 <= reply < 500)
    return ("4" if temporary else "5") + status[1:]
