"""The user's source around a finding, read from the file if it is still the same."""

import linecache

from jaxsafe.diagnose import Finding
from jaxsafe.report import _html

_AROUND = 2


def text(finding: Finding, number: int) -> str:
    """A line of the finding's file; "" where the file is gone or has changed."""
    if number == finding.line:
        return finding.source.strip()
    return linecache.getline(finding.file, number).strip() if _is_same(finding) else ""


def around(finding: Finding, marked: set[int]) -> str:
    """Numbered lines as HTML; the finding's line alone if the file is not the same.

    Args:
      finding: where the lines are.
      marked: numbers of the lines that make the chain, in the same file.
    """
    if not _is_same(finding):
        return _html.pre(finding.source.strip()) if finding.source else ""
    near = {n for n in marked if abs(n - finding.line) <= 4 * _AROUND} | {finding.line}
    numbers = range(max(1, min(near) - _AROUND), max(near) + _AROUND + 1)
    lines = [(n, linecache.getline(finding.file, n).rstrip("\n")) for n in numbers]
    while lines and not lines[-1][1].strip():
        lines.pop()
    rows = "\n".join(_row(n, line, n in near) for n, line in lines)
    return f'<pre class="lines" tabindex="0"><code>{rows}</code></pre>'


def _is_same(finding: Finding) -> bool:
    if not (finding.file and finding.source.strip()):
        return False
    linecache.checkcache(finding.file)
    now = linecache.getline(finding.file, finding.line)
    return now.strip() == finding.source.strip()


def _row(number: int, line: str, marked: bool) -> str:
    said = f"<span class='quiet'>{number:5}</span>  {_html.escape(line)}"
    return f"<mark>{said}</mark>" if marked else said
