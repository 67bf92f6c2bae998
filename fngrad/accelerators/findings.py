"""What a look at a machine found: fine, worth a look, or wrong with a way out."""

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"
SEVERITY = (PROBLEM, WARNING, OK)  # the worst first


class Finding(NamedTuple):
    """One line of a diagnosis."""

    status: str  # "ok", "warning" or "problem"
    subject: str  # such as "versions"
    text: str  # what was found
    way_out: str = ""  # what to do about a warning or a problem


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Return findings with problems first, then warnings, otherwise in their order.

    Example:
        >>> from fngrad.accelerators.findings import Finding, worst_first
        >>> found = [Finding("ok", "a", "1"), Finding("problem", "b", "2")]
        >>> [each.subject for each in worst_first(found)]
        ['b', 'a']
    """
    return sorted(findings, key=lambda each: SEVERITY.index(each.status))
