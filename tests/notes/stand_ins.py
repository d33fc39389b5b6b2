"""What the notes speak of and nobody has here: Twitter, a database, a cache, pages."""

from __future__ import annotations

from typing import Any


class Twitter:
    """A service that fails as often as `failures` says."""

    failures = 0

    class FailWhaleError(Exception):
        """It is over capacity."""

    class LoginError(Exception):
        """It does not know us."""

    def __init__(self, oauth: str) -> None:
        self.oauth = oauth

    def update_status(self, tweet: str) -> None:
        if Twitter.failures:
            Twitter.failures -= 1
            raise Twitter.FailWhaleError(tweet)


class Timeline:
    """`twitter`, an object, in the notes."""

    def refresh_timeline(self, user: str) -> str:
        raise ConnectionError(user)

    def get_timeline(self, user: str) -> list[str]:
        return [f"{user} says hello"]


class Cache:
    """`redis`, of which the notes ask one thing."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()

    def ismember(self, key: str, member: str) -> bool:
        return key == "tasks.revoked" and ("all" in self.revoked or member in self.revoked)


class Database:
    """A database that counts its connections."""

    connections = 0

    @classmethod
    def connect(cls) -> Any:
        cls.connections += 1
        return f"connection {cls.connections}"
