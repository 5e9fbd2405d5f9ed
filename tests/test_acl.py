"""The rights of deploy/acl/expirer.acl suffice, none is superfluous, and no password comes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

import pytest
import redis

from tests.acl import PASSWORD, RULES, Desk, complaints, refusals
from tests.inventory import Inventory
from tests.servers import RedisServer

COMMANDS = [
    pytest.param(user, rule, id=f"{user} {rule}") for user, rules in RULES.items() for rule in rules if rule[0] == "+"
]
PATTERNS = [
    pytest.param(user, rule, id=f"{user} {rule}") for user, rules in RULES.items() for rule in rules if rule[0] in "~&"
]

Employ = Callable[..., Desk]


@pytest.fixture
def employ(shared_server: RedisServer, server_client: redis.Redis) -> Iterator[Employ]:
    """Return a function that creates a user of the file, maybe without one of its rights."""

    def run(user: str, lacks: str = "") -> Desk:
        rules = [rule for rule in RULES[user] if rule != lacks]
        server_client.execute_command("ACL", "SETUSER", user, *rules)  # type: ignore[no-untyped-call]
        server_client.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]
        return Desk(Inventory(server_client), shared_server, f"{shared_server.url}?username={user}&password={PASSWORD}")

    yield run
    server_client.execute_command("ACL", "DELUSER", *RULES)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("user", RULES)
def test_the_rights_suffice(employ: Employ, user: str) -> None:
    """With exactly its rights a user does all that it is there for, and nothing is refused."""
    desk = employ(user)

    assert [] == complaints(desk, user)
    assert [] == refusals(desk.shop.client)


@pytest.mark.parametrize(("user", "rule"), COMMANDS)
def test_each_command_is_needed(employ: Employ, user: str, rule: str) -> None:
    """Without any one of its commands something fails, and says which in one line."""
    told = complaints(employ(user, rule), user)

    assert told
    command = rule[1:].partition("|")[0]
    assert any(command in line.lower() for line in told), told


@pytest.mark.parametrize(("user", "rule"), PATTERNS)
def test_each_pattern_is_needed(employ: Employ, user: str, rule: str) -> None:
    """Without any one of its key patterns and channels something fails, for want of a key or a channel."""
    kind = "channel" if rule[0] == "&" else "key"
    desk = employ(user, rule)
    told = complaints(desk, user)

    assert told
    assert any(kind in line for line in told), told
    assert [what for reason, what in refusals(desk.shop.client) if reason == kind and fnmatchcase(what, rule[1:])]
