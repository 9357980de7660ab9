"""What people read about verdicts and states, in English and Japanese. Pure."""

from __future__ import annotations

import re

from relayd.domains.records import Cause, Finding, Purpose, Verdict

PURPOSES = {
    Purpose.DKIM: ("DKIM key: receivers check our signatures with it", "DKIM公開鍵(署名の検証に使われます)"),
    Purpose.DKIM_DELEGATION: (
        "DKIM, delegated to us: keys can be changed without asking you again",
        "DKIMの委任(以後の鍵の交換で再度の設定は不要です)",
    ),
    Purpose.DKIM_ZONE: ("DKIM key in our own zone, where the CNAME leads", "当方のゾーンに置くDKIM公開鍵"),
    Purpose.SPF: ("SPF: allows our servers to send", "SPF(当方のサーバーからの送信を許可)"),
    Purpose.DMARC: ("DMARC: what receivers do with forgeries", "DMARC(なりすましメールの扱いの指定)"),
    Purpose.RETURN_PATH: ("Return path: bounces come back to us", "Return-Path(エラーメールの受信先)"),
    Purpose.RETURN_PATH_SPF: ("SPF of the return path", "Return-PathのSPF"),
    Purpose.PROVIDER: ("Demanded by the provider", "配信事業者が求めるレコード"),
    Purpose.TRACKING: ("Tracking host: links and opens come to us", "クリック・開封計測用ホスト"),
    Purpose.TRACKING_MX: ("MX of the tracking host", "計測用ホストのMX"),
    Purpose.TRACKING_PROOF: ("Proof of ownership for the TLS certificate", "TLS証明書のための所有確認"),
    Purpose.TRACKING_TLS: ("Tracking host with TLS", "TLS対応の計測用ホスト"),
}
VERDICTS = {
    Verdict.VERIFIED: ("verified", "確認済み"),
    Verdict.MISSING: ("missing", "未設定"),
    Verdict.WRONG: ("wrong", "誤り"),
    Verdict.PROPAGATING: ("not yet everywhere", "反映待ち"),
    Verdict.UNKNOWN: ("could not be checked", "確認できません"),
    Verdict.NOT_CHECKED: ("not checked", "対象外"),
}
STATES = {
    "pending": ("pending: records are missing", "設定待ち"),
    "verified": ("verified", "設定完了"),
    "degraded": ("degraded: a record has gone, mail still goes out", "設定不備(送信は継続中)"),
    "stopped": ("stopped: mail is refused until the records are back", "送信停止"),
    "expired": ("expired: the proof came too late; delete it and add it anew", "期限切れ(削除して再登録してください)"),
}
CAUSES = {
    Cause.NONE: ("", ""),
    Cause.ABSENT: ("there is no such record", "レコードがありません"),
    Cause.ZONE_APPENDED: (
        "the record is at {detail}: the DNS panel appended the domain to the host; enter the host without it",
        "{detail} に登録されています。管理画面がドメイン名を自動で付加しています。"
        "ホスト名にはドメイン名を除いた部分だけを入力してください",
    ),
    Cause.VALUE_ZONE_APPENDED: (
        "the domain was appended to the value: end the value with a dot",
        "値の末尾にドメイン名が付加されています。値の最後に「.」を付けてください",
    ),
    Cause.NO_UNDERSCORE: (
        "the underscore is lost: the name must begin with _ exactly as shown",
        "アンダースコア(_)が抜けています。表示どおりに入力してください",
    ),
    Cause.QUOTES: (
        "quotation marks became part of the value: enter it without them",
        "引用符が値に含まれています。引用符なしで入力してください",
    ),
    Cause.ESCAPED: (
        "backslashes became part of the value: enter it without them",
        "バックスラッシュ(\\)が値に含まれています。除いて入力してください",
    ),
    Cause.WIDE: (
        "the value has characters beyond ASCII, such as full-width letters or spaces",
        "全角文字が含まれています。半角で入力してください",
    ),
    Cause.SPLIT: (
        "the value was split into several records: it must be one record (of several strings, if need be)",
        "値が複数のレコードに分割されています。1つのレコードにまとめてください",
    ),
    Cause.TWO_SPF: (
        "there are two SPF records, which makes both void (RFC 7208 4.5): replace them by this one",
        "SPFレコードが2つあり、どちらも無効になります。1つにまとめてください",
    ),
    Cause.TWO_DMARC: (
        "there are two DMARC records, which makes both void (RFC 7489 6.6.3): keep one",
        "DMARCレコードが2つあり、どちらも無効になります。1つにしてください",
    ),
    Cause.DOUBLED: (
        "there is another record at the same name: keep only this one",
        "同じ名前に別のレコードがあります。このレコードだけを残してください",
    ),
    Cause.PROXY: (
        "there is an address instead of the CNAME: switch off the proxy (or flattening) in front of it",
        "CNAMEの代わりにアドレスが返ります。プロキシ(CDN)機能を無効にしてください",
    ),
    Cause.OTHER_TYPE: (
        "there is a {detail} record instead of a CNAME",
        "CNAMEではなく{detail}レコードが登録されています",
    ),
    Cause.OTHER_TARGET: ("the CNAME leads somewhere else", "CNAMEの値が異なります"),
    Cause.OTHER_KEY: ("another key is published at this name", "別の鍵が登録されています"),
    Cause.CUT: (
        "the key was cut off: values over 255 octets must be entered as several strings of one record",
        "値が途中で切れています。255文字を超える値は1レコード内で複数の文字列に分けて入力してください",
    ),
    Cause.CASE: (
        "capital and small letters of the key were changed",
        "鍵の大文字・小文字が変わっています。そのまま貼り付けてください",
    ),
    Cause.REVOKED: ("the record says that the key is revoked (p= is empty)", "鍵が失効しています(p=が空です)"),
    Cause.NOT_A_KEY: ("the record at this name is no DKIM key", "DKIM公開鍵ではないレコードが登録されています"),
    Cause.RESTRICTED: (
        "the record forbids the key for mail or for SHA-256 (s= or h=)",
        "s=またはh=の指定により、この鍵はメールに使えません",
    ),
    Cause.WILDCARD: (
        "a wildcard record (*) answers here: add the record itself",
        "ワイルドカード(*)レコードの値です。このホスト名のレコードを追加してください",
    ),
    Cause.LOOP: ("the CNAMEs lead in a circle: {detail}", "CNAMEが循環しています {detail}"),
    Cause.DANGLING: (
        "the name is an alias for {detail}, where there is nothing",
        "別名(CNAME)の先 {detail} にレコードがありません",
    ),
    Cause.SPF_LACKS: ("the record does not hold our part: {detail}", "当方の指定({detail})が含まれていません"),
    Cause.SPF_AFTER_ALL: (
        "our part stands behind `all`, where it is never read: put it in front",
        "当方の指定が all の後ろにあります。all の前に移してください",
    ),
    Cause.SPF_NEGATED: ("{detail} forbids what it should allow", "{detail} では拒否になります"),
    Cause.SPF_SYNTAX: ("the record has a fault, which makes it void: {detail}", "SPFの書式に誤りがあります {detail}"),
    Cause.DMARC_SYNTAX: ("the record has a fault: {detail}", "DMARCの書式に誤りがあります {detail}"),
    Cause.NULL_MX: ("a null MX refuses all mail (RFC 7505)", "Null MXが設定されており、メールを受信できません"),
    Cause.OTHER_MX: ("another server takes the mail first. {detail}", "別のMXが優先されています {detail}"),
    Cause.MX_ADDRESS: ("an MX must name a host, not an address", "MXにはアドレスではなくホスト名を指定してください"),
    Cause.CACHED: (
        "the servers have it, resolvers still remember the old answer, for {wait} seconds at most",
        "登録されていますが、古い情報がキャッシュに残っています(最長{wait}秒)",
    ),
    Cause.SOME_SERVERS: (
        "these servers of the zone do not have it yet: {detail}",
        "一部の権威サーバーに未反映です: {detail}",
    ),
    Cause.SERVFAIL: ("the servers failed to answer (SERVFAIL)", "サーバーが応答エラー(SERVFAIL)を返しています"),
    Cause.DNSSEC: (
        "DNSSEC validation fails: receivers that validate see nothing of this domain",
        "DNSSECの検証に失敗しています",
    ),
    Cause.TIMEOUT: ("no answer in time", "応答がありません(タイムアウト)"),
    Cause.LAME: (
        "the servers named for the zone do not serve it: {detail}",
        "委任先のサーバーがゾーンを持っていません: {detail}",
    ),
    Cause.ERROR: ("no usable answer: {detail}", "応答を読み取れません: {detail}"),
}


NOTES = {
    "get this from the provider": "値は配信事業者の管理画面で確認してください",
    "the next key: mail is signed with it once this record is seen": (
        "次の鍵です。このレコードが確認され次第、署名に使われます"
    ),
    "the old key: keep the record until it is retired": "以前の鍵です。使用終了までレコードを残してください",
    "rewrite the record of step 1": "手順1のレコードを書き換えてください",
}
"""Remarks beside expected records, in Japanese; in English they are as expected.py and its like write them."""
REMARKS = {
    re.compile(pattern): text
    for pattern, text in {
        # spf.py
        r"the record takes (\d+) DNS look-ups, (\d+) are allowed .*": (
            r"DNS参照が\1回必要です。上限は\2回です(RFC 7208 4.6.4)"
        ),
        r"(\d+) of its look-ups find nothing, (\d+) are allowed .*": (
            r"\1回のDNS参照に応答がありません。上限は\2回です(RFC 7208 4.6.4)"
        ),
        r"(\S+) leads in a circle": r"\1 の参照が循環しています",
        r"(\S+): (\S+) has no SPF record": r"\1: \2 にSPFレコードがありません",
        r"(\S+): (\S+) has more than one SPF record": r"\1: \2 にSPFレコードが複数あります",
        # verify.py
        r"the SPF record that is there now could not be read: .*": (
            "現在のSPFレコードを取得できませんでした。既存の内容にこの値を統合してください"
        ),
        # dmarc.py
        r"DKIM signs as (\S+), which is not aligned with (\S+)": r"DKIM署名のドメイン \1 が \2 と一致しません",
        r"the return path (\S+) is not aligned with (\S+): aspf=s .*": (
            r"Return-Pathのドメイン \1 が \2 と一致しません。aspf=s では完全一致が必要です"
        ),
        r"the return path (\S+) is not aligned with (\S+): .*": (
            r"Return-Pathのドメイン \1 が \2 と一致しません(組織ドメインが異なります)"
        ),
        r"From, DKIM and return path \((\S+)\) are aligned: (\S+)": (
            r"From、DKIM、Return-Path(\1)のドメインは一致しています: \2"
        ),
        # match.py
        r"t=y: .*": "t=y のため、受信側ではテスト用の鍵として扱われます",
        r"\+all .*": "+all のため、誰でもこのドメインとして送信できます",
        # judge.py
        r"(\S+) did not answer": r"\1 から応答がありません",
        r"(\S+) is named for the zone but does not serve it": r"\1 は委任先ですが、ゾーンを持っていません",
        r"(\S+) answered SERVFAIL": r"\1 が応答エラー(SERVFAIL)を返しました",
        r"(\S+) gave no usable answer": r"\1 の応答を読み取れません",
        r"(\S+) finds its DNSSEC signatures broken": r"\1 でDNSSECの検証に失敗しました",
        r"resolvers may still have it in their caches, for (\d+) seconds at most": (
            r"リゾルバーのキャッシュには残っている可能性があります(最長\1秒)"
        ),
        r"inherited from (\S+)": r"\1 の設定が適用されます",
    }.items()
}
"""Remarks beside verdicts, in Japanese, by their form in English."""


def note(finding: Finding, lang: str = "en") -> str:
    """The remark beside an expected record; "" for none."""
    text = finding.expected.note
    return NOTES.get(text, text) if lang == "ja" else text


def remarks(finding: Finding, lang: str = "en") -> list[str]:
    """The remarks beside a verdict."""
    return [_translated(text) if lang == "ja" else text for text in finding.notes]


def _translated(text: str) -> str:
    for pattern, form in REMARKS.items():
        if found := pattern.fullmatch(text):
            return found.expand(form)
    return text


def pick(pair: tuple[str, str], lang: str) -> str:
    """The text of one language."""
    return pair[1] if lang == "ja" else pair[0]


def purpose(purpose: Purpose, lang: str = "en") -> str:
    """What a record is for."""
    return pick(PURPOSES[purpose], lang)


def verdict(verdict: Verdict, lang: str = "en") -> str:
    """One word or two."""
    return pick(VERDICTS[verdict], lang)


def state(state: str, lang: str = "en") -> str:
    """Where a domain stands."""
    return pick(STATES[state], lang)


def message(finding: Finding, lang: str = "en") -> str:
    """Why a record is not verified; "" where it is."""
    text = pick(CAUSES[finding.cause], lang)
    return text.replace("{detail}", finding.detail).replace("{wait}", str(finding.wait)).strip()
