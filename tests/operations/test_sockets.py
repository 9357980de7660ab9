"""Listening sockets: faults in plain words, several processes on one port, what a reload keeps."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from relayd.config.models import Config
from relayd.sockets import BindError, Sockets, address_of, bind, rebind, shares
from tests.operations.configs import config


@pytest.fixture
def opened() -> Iterator[list[Sockets]]:
    sets: list[Sockets] = []
    yield sets
    for each in sets:
        each.close()


def local(*binds: str, web: tuple[str, ...] = ()) -> Config:
    return config(listeners=[{"name": "local", "bind": list(binds), "tls": "none"}], web={"bind": list(web)})


def test_an_address_in_use_is_named_with_its_listener(opened: list[Sockets]) -> None:
    opened.append(bind(local("127.0.0.1:0")))
    taken = address_of(opened[0].smtp["local"][0])
    with pytest.raises(BindError, match=rf"listener local: cannot listen on {taken}: another program listens there"):
        bind(local(taken))


def test_a_stranger_with_the_same_user_is_noticed_in_spite_of_reuseport(opened: list[Sockets]) -> None:
    opened.append(bind(local("127.0.0.1:0"), reuse_port=True))
    with pytest.raises(BindError, match="another program listens there"):
        bind(local(address_of(opened[0].smtp["local"][0])), reuse_port=True)


def test_an_address_of_no_interface_is_named(opened: list[Sockets]) -> None:
    with pytest.raises(BindError, match=r"web: cannot listen on 192\.0\.2\.1:0: no interface"):
        bind(local("127.0.0.1:0", web=("192.0.2.1:0",)))


def test_ipv4_and_ipv6_wildcards_share_a_port(opened: list[Sockets]) -> None:
    first = bind(local("0.0.0.0:0"))
    opened.append(first)
    port = first.smtp["local"][0].getsockname()[1]
    try:
        opened.append(bind(local(f"[::]:{port}")))
    except BindError as error:
        if "no IPv6" in str(error):
            pytest.skip("no IPv6 here")
        raise
    assert opened[1].addresses() == {"local": [f"[::]:{port}"]}


def test_several_workers_listen_on_the_same_port_even_when_it_was_chosen_by_the_system(opened: list[Sockets]) -> None:
    first = bind(local("127.0.0.1:0", web=("127.0.0.1:0",)), reuse_port=True)
    opened.append(first)
    opened.append(bind(local("127.0.0.1:0", web=("127.0.0.1:0",)), reuse_port=True, like=first))
    assert opened[1].addresses() == first.addresses()
    assert set(opened[1]).isdisjoint(set(first))


def test_sockets_survive_the_passage_to_another_process(opened: list[Sockets]) -> None:
    first = bind(local("127.0.0.1:0", "127.0.0.1:0", web=("127.0.0.1:0",)))
    opened.append(first)
    plan, fds = first.export()
    passed = Sockets.adopt(plan, [os.dup(fd) for fd in fds])
    opened.append(passed)
    assert passed.addresses() == first.addresses()
    assert list(passed.smtp) == ["local"]


def test_a_reload_keeps_what_stays_and_opens_only_what_is_new(opened: list[Sockets]) -> None:
    old = bind(local("127.0.0.1:0", "127.0.0.1:0"))
    opened.append(old)
    stays = address_of(old.smtp["local"][1])
    new = rebind(local(stays, "[::1]:0") if socket.has_ipv6 else local(stays, "127.0.0.2:0"), old)
    opened.append(new)
    assert new.smtp["local"][0] is old.smtp["local"][1]
    assert new.smtp["local"][1] not in set(old)


def test_a_listener_that_is_renamed_keeps_its_socket(opened: list[Sockets]) -> None:
    old = bind(local("127.0.0.1:0"))
    opened.append(old)
    address = address_of(old.smtp["local"][0])
    new = rebind(config(listeners=[{"name": "renamed", "bind": [address]}]), old)
    assert new.smtp["renamed"] == old.smtp["local"]


def test_port_0_stays_on_the_port_it_was_given(opened: list[Sockets]) -> None:
    old = bind(local("127.0.0.1:0", web=("127.0.0.1:0",)))
    opened.append(old)
    new = rebind(local("127.0.0.1:0", web=("127.0.0.1:0",)), old)
    assert list(new) == list(old)


def test_a_reload_that_fails_leaves_the_old_sockets_open(opened: list[Sockets]) -> None:
    old = bind(local("127.0.0.1:0"))
    opened.append(old)
    with pytest.raises(BindError):
        rebind(local("127.0.0.1:0", "192.0.2.1:0"), old)
    assert all(sock.fileno() >= 0 for sock in old)


def test_keep_prefers_our_own_object_and_closes_the_duplicate(opened: list[Sockets]) -> None:
    ours = bind(local("127.0.0.1:0"))
    opened.append(ours)
    plan, fds = ours.export()
    duplicate = Sockets.adopt(plan, [os.dup(fd) for fd in fds])
    twin = duplicate.smtp["local"][0]
    assert ours.keep(duplicate).smtp["local"][0] is ours.smtp["local"][0]
    assert twin.fileno() == -1


def test_what_one_process_listened_on_is_one_of_several_after_a_restart_with_more(opened: list[Sockets]) -> None:
    before = bind(local("127.0.0.1:0"))
    opened.append(before)  # as the service manager has it, from which it cannot be taken away
    [kept] = before
    wanted = local(address_of(kept))
    first, second = shares([kept.dup()], 2)
    opened.append(rebind(wanted, first, reuse_port=True))
    opened.append(rebind(wanted, second, reuse_port=True, like=opened[-1]))
    assert opened[1].addresses() == opened[2].addresses() == before.addresses()
    accepted = [0, 0]
    with contextlib.ExitStack() as clients:
        while not all(accepted):
            clients.enter_context(socket.create_connection(kept.getsockname()))
            for place, sockets in enumerate(opened[1:]):
                with contextlib.suppress(BlockingIOError):
                    clients.enter_context(next(iter(sockets)).accept()[0])
                    accepted[place] += 1
