"""relayd config: faults with their places, the effective configuration, comparisons, password hashes."""

from __future__ import annotations

import pytest
import yaml
from argon2 import PasswordHasher

from relayd import control
from relayd.control import ControlError, ControlServer
from tests.cli.conftest import CANARY, Site, run
from tests.cli.served import serving


@pytest.mark.usefixtures("secret")
def test_a_sound_file(site: Site) -> None:
    done = site.run("config", "check")
    assert (done.code, done.err) == (0, "")
    assert site.run("config", "check", "--json").json == {"file": str(site.config), "ok": True, "faults": []}
    assert run("config", "check", str(site.config)).code == 0


def test_every_fault_at_once_with_line_and_remedy(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace("port: 587", "port: 25, prot: 1"))
    done = site.run("config", "check")
    assert done.code == 2
    lines = done.out.splitlines()
    assert all(line.startswith(str(site.config)) for line in lines)
    assert any("RELAYD_TEST_SECRET" in line for line in lines)
    assert any("prot" in line for line in lines)
    faults = site.run("config", "check", "--json").json["faults"]
    assert all(fault["line"] > 0 and fault["remedy"] for fault in faults)


@pytest.mark.usefixtures("secret")
def test_show_prints_the_effective_configuration_without_secrets(site: Site) -> None:
    done = site.run("config", "show")
    assert done.code == 0
    shown = yaml.safe_load(done.out)
    assert shown["upstreams"]["acme"]["port"] == 587
    assert shown["spool"]["keep"] == "40d"
    assert site.run("config", "show", "--json").json == shown
    for out in (done.out, site.run("config", "show", "--json").out):
        assert CANARY not in out
        assert "c29tZXNhbHQ" not in out


def test_schema_is_json_schema(site: Site) -> None:
    found = site.run("config", "schema").json
    assert found["properties"]["hostname"]


@pytest.mark.usefixtures("secret")
def test_diff_says_what_changes_and_which_mail_moves(spool: Site) -> None:
    new = spool.directory / "new.yaml"
    new.write_text(spool.config.read_text().replace("lifetime", "").replace("port: 587", "port: 2525"))
    same = spool.run("config", "diff", str(new), "--json").json
    assert same["compared_with"] == str(spool.config)
    assert any("upstreams.acme.port" in change for change in same["changes"])
    # what waits for acme was put there by hand, the rules say sandbox
    assert same["routes"] == [
        {"from": "acme", "to": "sandbox", "recipients": 2, "examples": [spool.ids["fresh"], spool.ids["late"]]}
    ]
    done = spool.run("config", "diff", str(new))
    assert done.code == 0
    assert spool.ids["late"] in done.out


def test_diff_asks_the_running_daemon_what_it_uses(spool: Site) -> None:
    async def answer(args: dict[str, object]) -> object:
        return [f"asked about {args['file']}"]

    path = control.supervisor_socket(spool.data)
    with serving(ControlServer(path, {"config.diff": answer})):
        found = spool.run("config", "diff", str(spool.config), "--json").json
    assert found["compared_with"] == "the running daemon"
    assert found["changes"] == [f"asked about {spool.config}"]


def test_diff_where_the_daemon_finds_faults(spool: Site) -> None:
    async def refuse(args: dict[str, object]) -> object:
        raise ControlError("the configuration cannot be used", ["new.yaml:1:1: error: hostname"])

    with serving(ControlServer(control.supervisor_socket(spool.data), {"config.diff": refuse})):
        done = spool.run("config", "diff", str(spool.config))
    assert done.code == 2
    assert "new.yaml:1:1" in done.err


@pytest.mark.usefixtures("secret")
def test_diff_beside_an_older_daemon_compares_the_files(spool: Site) -> None:
    with serving(ControlServer(control.supervisor_socket(spool.data), {})):
        done = spool.run("config", "diff", str(spool.config))
    assert done.code == 0
    assert "restart it after an upgrade" in done.err
    assert f"Compared with {spool.config}" in done.out


@pytest.mark.usefixtures("secret")
def test_diff_where_nothing_ran_yet(site: Site) -> None:
    done = site.run("config", "diff", str(site.config))
    assert done.code == 0
    assert "nothing changes" in done.out


@pytest.mark.usefixtures("secret")
def test_diff_of_a_faulty_file(spool: Site) -> None:
    new = spool.directory / "new.yaml"
    new.write_text("hostname: 7\n")
    done = spool.run("config", "diff", str(new))
    assert done.code == 2
    assert "new.yaml:1" in done.err


@pytest.mark.parametrize("line", ["correct horse\n", "correct horse\r\n", "correct horse"])
def test_hash_password_reads_one_line_and_prints_what_fits(line: str) -> None:
    done = run("config", "hash-password", stdin=line)
    assert done.code == 0
    assert done.out.startswith("$argon2id$")
    assert PasswordHasher().verify(done.out.strip(), "correct horse")
    assert "correct" not in done.out + done.err


@pytest.mark.parametrize("line", ["", "\n", "a\0b\n"])
def test_hash_password_refuses_what_is_no_password(line: str) -> None:
    done = run("config", "hash-password", stdin=line)
    assert (done.code, done.out) == (2, "")
