"""How the command line says that something is wrong: one sentence, a cause, a way out, no traceback."""

from __future__ import annotations


class Mistake(Exception):
    """Something the user can mend.

    Args:
        code: a stable code (`LQ004`).
        what: one sentence.
        cause: what is behind it.
        hint: a command to run, or a thing to change.
        exit_code: 2 for usage and configuration.
    """

    def __init__(
        self, code: str, what: str, cause: str | None = None, hint: str | None = None, exit_code: int = 2
    ) -> None:
        super().__init__(what)
        self.code, self.what, self.cause, self.hint, self.exit_code = code, what, cause, hint, exit_code

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)
