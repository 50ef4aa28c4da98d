"""The client's side of the books: what it sent and what it got, in the terms that the server counts in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

MAX_ERRORS_KEPT: Final = 100


@dataclass
class Ledger:
    """Counts of one soak.

    Attributes:
        sent: requests by kind.
        answered: answers by the profile that `x-moe-skip` names, as `sglang_moe_opt_requests_total` counts them.
        refused: intended refusals by HTTP status, as `sglang_moe_opt_refused_requests_total` counts them.
        unknown: requests whose end was not seen (cut off before an answer began): the server may count them or not.
        finished: whole answers.
        output_tokens: of whole answers.
        cut: streams that were cut off while they ran.
        cut_tokens: output tokens seen of those, and `cut_at_most` what they could have grown to.
        sentinels: answers that were compared with the known one.
        errors: whatever was not intended, the first hundred in words; `num_errors` counts all.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    unknown: int = 0
    finished: int = 0
    output_tokens: int = 0
    cut: int = 0
    cut_tokens: int = 0
    cut_at_most: int = 0
    sentinels: int = 0
    errors: list[str] = field(default_factory=list)
    num_errors: int = 0

    def error(self, what: str) -> None:
        """Note something that was not intended."""
        self.num_errors += 1
        if len(self.errors) < MAX_ERRORS_KEPT:
            self.errors.append(what)

    def begun(self, profiles: str) -> None:
        """An answer began; `profiles` is its `x-moe-skip`."""
        self.answered.update(profiles.split(","))

    def whole(self, tokens: int) -> None:
        """An answer ended by itself."""
        self.finished += 1
        self.output_tokens += tokens

    def cut_off(self, seen: int, at_most: int) -> None:
        """A stream was cut off after it had begun."""
        self.cut += 1
        self.cut_tokens += seen
        self.cut_at_most += at_most

    def decode_tokens(self) -> tuple[int, int]:
        """Least and most tokens that decode steps computed for these requests; the prompt gives each its first token.

        What a cut stream grew to before the server learnt of it lies between what was seen and what was asked for.
        """
        seen = self.output_tokens - self.finished
        least = seen + max(0, self.cut_tokens - self.cut)
        return least, seen + self.cut_at_most
