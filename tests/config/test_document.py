"""YAML is read with places, tags are followed, and no file, however hostile, does more than get a fault."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config.document import MAX_FILE, Document, parse_document, read_document
from relayd.config.fault import Place

HERE = Path("/nowhere")


def read(text: str | bytes, directory: Path = HERE, **environ: str) -> Document:
    return parse_document(text if isinstance(text, bytes) else text.encode(), directory, environ)


def plain(text: str, **environ: str) -> Any:
    document = read(text, **environ)
    assert document.faults == []
    assert document.root is not None
    return document.root.plain()


def only_fault(document: Document) -> tuple[int, int, str]:
    [fault] = document.faults
    assert fault.remedy
    return fault.line, fault.column, f"{fault.key}: {fault.problem}"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("true", True),
        ("False", False),
        ("587", 587),
        ("0x1f", 31),
        ("010", 10),
        ("1.5", 1.5),
        ("~", None),
        ("", None),
        ("'587'", "587"),
        ("!!str 587", "587"),
        ("600/min", "600/min"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    read_value = plain(f"key: {written}")["key"]
    assert (read_value, type(read_value)) == (value, type(value))


def test_every_key_and_item_knows_its_place() -> None:
    root = read("a: 1\nb:\n  c: [x, {d: 2}]\n").root
    assert root is not None
    places = {loc: (place.line, place.column) for loc, place in root.places().items()}
    assert places == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c"): (3, 3),
        ("b", "c", 0): (3, 7),
        ("b", "c", 1): (3, 10),
        ("b", "c", 1, "d"): (3, 11),
    }


def test_a_key_written_twice_is_a_fault_at_the_second_place() -> None:
    document = read("a: 1\nb: {x: 1, x: 2}\na: 3\n")
    assert [(f.line, f.column, f.key, f.problem) for f in document.faults] == [
        (2, 11, "b.x", "is written twice, here and in line 2"),
        (3, 1, "a", "is written twice, here and in line 1"),
    ]


def test_anchors_and_merge_keys_work() -> None:
    assert plain("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [*a, {z: 4}]}") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
        "d": {"x": 1, "y": 2, "z": 4},
    }


def test_env_file_and_credential_bring_values(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("geheim\n\n")
    (tmp_path / "creds").mkdir()
    (tmp_path / "creds/token").write_text("tok\r\n")
    text = "a: !env NAME\nb: !file pass\nc: !credential token\nd: !file " + str(tmp_path / "pass")
    document = read(text, tmp_path, NAME="wert", CREDENTIALS_DIRECTORY=str(tmp_path / "creds"))
    assert document.faults == []
    assert document.root is not None
    # one newline at the end is taken away, a second one is part of the value
    assert document.root.plain() == {"a": "wert", "b": "geheim\n", "c": "tok", "d": "geheim\n"}
    source = document.root.value["b"].place.source
    assert (source.tag, source.name, source.path) == ("!file", "pass", tmp_path / "pass")
    assert document.root.value["a"].place == Place(1, 1, document.root.value["a"].place.source)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("!env GONE", "the environment variable GONE is not set"),
        ("!env EMPTY", "the environment variable EMPTY is set but empty"),
        ("!env", "!env needs a name behind it"),
        ("!env [a]", "!env needs a name behind it"),
        ("!file gone", "is not there"),
        ("!file .", "cannot be read: is a directory"),
        ("!file empty", "is empty"),
        ("!file binary", "is not UTF-8 text"),
        ("!file large", "is larger than 64 KiB"),
        ("!file pipe", "is not a plain file"),
        ('!file "a\\0b"', "!file needs a name behind it"),
        ("!credential token", "systemd passes no credentials here"),
        ("!credential ../token", "has no slash"),
        ("!evn NAME", "begins with a tag (!) that relayd does not know"),
        ("!!python/object:os.system x", "has a tag (!!) that relayd does not know"),
        ("!!binary aGVsbG8=", "has a tag (!!) that relayd does not know"),
        ("1" + "0" * 5000, "is not a number that relayd can read"),
    ],
)
def test_a_value_that_cannot_be_had_is_a_fault_with_its_place(tmp_path: Path, value: str, problem: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    os.mkfifo(tmp_path / "pipe")
    document = read(f"ok: 1\nlist:\n  - {value}\n  - 2\n", tmp_path, EMPTY="")
    line, column, text = only_fault(document)
    assert (line, column) == (3, 5)
    assert text.startswith("list[0]: ")
    assert problem in text
    assert ("list", 0) in document.faulty
    assert document.root is not None
    assert document.root.plain() == {"ok": 1, "list": [None, 2]}


def test_the_nearest_tag_is_named() -> None:
    assert "Did you mean !env?" in read("a: !evn NAME").faults[0].remedy


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: [1,\nc: 2", 3, "is not closed, or a comma is missing"),
        ("a: 1\n b: 2", 2, "a colon is not allowed here"),
        ("a: 1\n\tb: 2", 2, "this is not YAML"),
        ("a: 'x", 1, "a quote is not closed"),
        ("a: @x", 1, "this is not YAML"),
        ("a: 1\nb: *geheim", 2, "there is no anchor"),
        ("a: &geheim 1\nb: &geheim 2", 2, "there is one of that name"),
        ("a: !geheim!x 1", 1, "a tag that is not known"),
        ("a: 1\n---\nb: 2", 2, "a second document"),
        ("%geheim\na: 1", 2, "this is not YAML"),
        ('a: "\\U99999999"', 1, "this is not YAML"),
        ("a: 1\nb: \x01", 2, "there is a control character here"),
        ("", 1, "the file is empty"),
        ("# nothing but words\n", 1, "the file is empty"),
        ("[" * 100_000, 1, "is nested deeper than 30 levels"),
        ("{a: " * 100_000, 1, "is nested deeper than 30 levels"),
        ("- " * 1000 + "x", 1, "is nested deeper than 30 levels"),
        ("a: &a [*a]", 1, "aliases (*) multiply"),
        ("a: &a\n  <<: *a", 1, "aliases (*) multiply"),
    ],
)
def test_what_is_not_yaml_is_one_fault_with_its_line(text: str, line: int, problem: str) -> None:
    document = read(text)
    assert document.root is None
    found = only_fault(document)
    assert found[0] == line
    assert problem in found[2]
    assert "geheim" not in str(document.faults)


def test_few_aliases_cannot_stand_for_billions_of_values() -> None:
    names = "abcdefghijklmnop"
    laughs = [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in itertools.pairwise(names)]
    for first in ("a: &a [x, x]", "a: &a {k: v}"):
        assert "multiply" in only_fault(read("\n".join([first, *laughs])))[2]
    merges = [
        f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}" for before, name in itertools.pairwise(names)
    ]
    assert "multiply" in only_fault(read("\n".join(["a: &a {k: v}", *merges])))[2]


def test_octets_that_are_no_utf8_are_found_by_line() -> None:
    assert only_fault(read(b"a: 1\nb: caf\xe9\n")) == (2, 7, ": is not UTF-8 text")


def test_a_byte_order_mark_does_no_harm() -> None:
    assert plain("\ufeffa: 1") == {"a": 1}


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    assert "no such file" in only_fault(read_document(tmp_path / "gone", {}))[2]
    assert "is a directory" in only_fault(read_document(tmp_path, {}))[2]
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    assert "is larger than 4 MiB" in only_fault(read_document(large, {}))[2]


_YAMLISH = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            "<<",
            ": ",
            ":",
            "- ",
            "\n",
            "\n  ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "&a ",
            "*a",
            "!env X",
            "!file x",
            "!!int ",
            "!",
            "|",
            ">",
            "'",
            '"',
            "#",
            "? ",
            "1",
            "1.5",
            "~",
            "true",
            "\t",
            "%",
            "---\n",
            "...",
            "\\",
            "\0",
            "é",
            "\ud800",
        ]
    ),
    max_size=30,
).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(_YAMLISH.map(lambda text: text.encode(errors="surrogatepass")), st.binary(max_size=200)))
def test_no_file_makes_the_reader_fail(raw: bytes) -> None:
    document = parse_document(raw, HERE, {"X": "1"})
    assert document.root is not None or document.faults
    for fault in document.faults:
        assert fault.problem
        assert fault.remedy
        assert str(fault).isprintable()
