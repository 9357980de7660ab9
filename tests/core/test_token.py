"""A return path says what was signed, in any case of letters, until its day; everything else says nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.ids import EPOCH
from relayd.core.token import DAY, MAX_N, ReturnPaths, Token, derive_key, issue, verify

KEY = derive_key(b"a secret", "return path")
NOW = EPOCH + 1000 * DAY
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"

tokens = st.builds(Token, st.integers(0, 2**63 - 1), st.integers(0, MAX_N))
moments = st.integers(EPOCH, EPOCH + 60_000 * DAY)


@given(tokens, moments, st.integers(0, 100 * DAY))
def test_what_was_signed_comes_back_until_it_expires(token: Token, now: int, life: int) -> None:
    text = issue(KEY, token, now + life)
    assert verify(KEY, text, now) == token
    assert verify(KEY, text, now + life) == token
    assert verify(KEY, text, now + life + DAY) is None


@given(tokens, st.data())
def test_case_makes_no_difference(token: Token, data: st.DataObject) -> None:
    text = issue(KEY, token, NOW)
    upper = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    mixed = "".join(letter.upper() if up else letter for letter, up in zip(text, upper, strict=True))
    assert verify(KEY, mixed, NOW) == token


@given(tokens, st.data())
def test_any_other_letter_is_a_forgery(token: Token, data: st.DataObject) -> None:
    text = issue(KEY, token, NOW)
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(LETTERS).filter(lambda letter: letter != text[place]))
    assert verify(KEY, text[:place] + letter + text[place + 1 :], NOW) is None


@given(tokens, st.data())
def test_cut_and_lengthened_ones_are_forgeries(token: Token, data: st.DataObject) -> None:
    text = issue(KEY, token, NOW)
    cut = data.draw(st.integers(0, len(text) - 1))
    more = data.draw(st.text(LETTERS, min_size=1, max_size=8))
    assert verify(KEY, text[:cut], NOW) is None
    assert verify(KEY, text + more, NOW) is None


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    assert verify(KEY, text, NOW) is None


@given(tokens)
def test_another_secret_or_purpose_proves_nothing(token: Token) -> None:
    text = issue(KEY, token, NOW)
    assert verify(derive_key(b"another secret", "return path"), text, NOW) is None
    assert verify(derive_key(b"a secret", "unsubscribe"), text, NOW) is None


@given(tokens)
def test_the_local_part_fits(token: Token) -> None:
    paths = ReturnPaths("Bounce.Example.com", b"a secret", 40 * DAY)
    address = paths.address(token.message, token.n, NOW)
    local, _, domain = address.rpartition("@")
    assert len(local) <= 64
    assert domain == "bounce.example.com"
    assert paths.read(address, NOW) == paths.read(address.upper(), NOW) == token


def test_only_addresses_of_the_domain_are_read() -> None:
    paths = ReturnPaths("bounce.example.com", b"a secret", 40 * DAY)
    local = paths.address(1234, 0, NOW).partition("@")[0]
    assert paths.read(f"{local}@bounce.example.com", NOW) == Token(1234, 0)
    for other in (f"{local}@example.com", f"{local}", f"c{local[1:]}@bounce.example.com", "@bounce.example.com", ""):
        assert paths.read(other, NOW) is None


def test_our_address_is_found_in_the_octets_of_a_mail() -> None:
    paths = ReturnPaths("bounce.example.com", b"a secret", 40 * DAY)
    address = paths.address(1234, 7, NOW)
    forged = address[:10] + ("a" if address[10] != "a" else "b") + address[11:]
    mail = f"Delivered-To: box@example.net\r\nReturn-Path: <{forged}>\r\nX: <{address.upper()}>\r\n\r\nhi".encode()
    assert paths.find(mail, NOW) == Token(1234, 7)
    assert paths.find(f"To: {address}.evil.example".encode(), NOW) is None
    assert paths.find(f"To: {forged}\r\n".encode() * 100 + address.encode(), NOW) is None, "bounded"
    assert paths.find(mail, NOW + 41 * DAY) is None


def test_what_was_issued_at_one_domain_of_ours_is_good_at_all() -> None:
    others = {"bounce.example.jp"}
    paths = ReturnPaths("bounce.example.com", b"a secret", 40 * DAY, others.__contains__)
    address = paths.address(1234, 7, NOW, "bounce.example.jp")
    local, _, domain = address.partition("@")
    assert domain == "bounce.example.jp"
    for each in (address, address.upper(), f"{local}@bounce.example.com"):
        assert paths.read(each, NOW) == Token(1234, 7)
        assert paths.find(f"It was sent by {each}.".encode(), NOW) == Token(1234, 7)
    assert paths.is_role("postmaster@Bounce.example.jp")
    assert paths.looks_issued("b+forged@bounce.example.jp")
    others.clear()
    assert paths.read(address, NOW) is None
    assert not paths.looks_issued(address) and not paths.is_role("postmaster@bounce.example.jp")
    assert paths.find(f"To: {address}\r\n".encode() * 30 + f"{local}@bounce.example.com".encode(), NOW) is not None
    assert paths.find(f"To: {address}\r\n".encode() * 1000 + f"{local}@bounce.example.com".encode(), NOW) is None


def test_roles_are_those_of_the_domain() -> None:
    paths = ReturnPaths("bounce.example.com", b"a secret", 40 * DAY)
    assert paths.is_role("Postmaster")
    assert paths.is_role("ABUSE@Bounce.example.com")
    assert not paths.is_role("abuse")
    assert not paths.is_role("postmaster@example.com")
    assert not paths.is_role("info@bounce.example.com")


@pytest.mark.parametrize("token", [Token(1 << 63, 0), Token(-1, 0), Token(0, MAX_N + 1), Token(0, -1)])
def test_numbers_that_nothing_has_get_no_token(token: Token) -> None:
    with pytest.raises(ValueError, match="no token"):
        issue(KEY, token, NOW)
