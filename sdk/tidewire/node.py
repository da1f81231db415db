"""One server of a cluster, as naming finds it and balancers choose it."""

from dataclasses import dataclass

__all__ = ["Node"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An address and what the naming service says beside it."""

    address: str
    """Canonical text, as parse_address gives it: "1.2.3.4:80", "unix:/path"."""
    tag: str = ""
    """A weight for balancers with weights, "N/M" for partitions; any text else."""

    @property
    def weight(self) -> int | None:
        """The tag as a whole number above 0; None: it is none."""
        if not (self.tag.isascii() and self.tag.isdigit()):
            return None
        # Twenty digits are more than any weight; Python refuses thousands.
        return int(self.tag.lstrip("0")[:20] or 0) or None
