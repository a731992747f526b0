"""The style sheet: two palettes, system fonts, one column that fits a phone."""

_LIGHT = {
    "paper": "#fcfcfb",
    "card": "#ffffff",
    "ink": "#1c1f24",
    "quiet": "#5c636e",
    "line": "#e2e4e8",
    "shade": "#f2f3f5",
    "link": "#0b5cad",
    "bad": "#b3261e",
    "series-0": "#0072b2",
    "series-1": "#c04a00",
    "series-2": "#00795a",
    "series-3": "#a4478a",
    "series-4": "#806000",
    "series-5": "#5a5f66",
}
_DARK = {
    "paper": "#14161a",
    "card": "#1a1d22",
    "ink": "#e4e6ea",
    "quiet": "#9ba2ad",
    "line": "#2e333b",
    "shade": "#22262c",
    "link": "#82b8ff",
    "bad": "#ff8a80",
    "series-0": "#56b4e9",
    "series-1": "#ff9248",
    "series-2": "#35c79d",
    "series-3": "#e59ac8",
    "series-4": "#e3c04a",
    "series-5": "#b4bac4",
}

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; max-width: 52rem; padding: 3rem 1.25rem 5rem;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1, h2, h3, h4 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 2rem; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.375rem; letter-spacing: -0.01em; margin: 3.5rem 0 0.75rem; }
h3 { font-size: 1.0625rem; margin: 0; }
h4 { font-size: 0.875rem; color: var(--quiet); margin: 1.25rem 0 0.25rem; }
p { margin: 0.75rem 0; max-width: 42rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 3px; }
.subtitle { color: var(--quiet); font-size: 1.0625rem; margin: 0.5rem 0 0; }
.quiet { color: var(--quiet); }
nav { border-block: 1px solid var(--line); margin: 2rem 0 0; padding: 0.75rem 0; }
nav ol { columns: 16rem; margin: 0; padding-left: 1.5rem; }
nav li { break-inside: avoid; padding: 0.125rem 0; }
nav li::marker { color: var(--quiet); font-variant-numeric: tabular-nums; }
code, pre { font: 0.875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre {
  background: var(--shade); border-radius: 6px; margin: 0.5rem 0; overflow-x: auto;
  overflow-wrap: normal; padding: 0.625rem 0.75rem;
}
pre code { font-size: 1em; }
.scroll { margin: 1rem 0; overflow-x: auto; }
table {
  border-collapse: collapse; font-size: 0.875rem; min-width: 100%;
  font-variant-numeric: tabular-nums; overflow-wrap: normal;
}
caption { color: var(--quiet); padding-bottom: 0.375rem; text-align: left; }
th, td {
  border-bottom: 1px solid var(--line); padding: 0.4rem 1.25rem 0.4rem 0;
  max-width: 24rem; text-align: left; vertical-align: baseline;
}
th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.bad { color: var(--bad); }
.plot { margin: 1.5rem 0 2rem; }
figcaption { font-weight: 600; }
.plot > svg { display: block; height: auto; overflow: visible; width: 100%; }
.plot svg * { stroke-linecap: butt; stroke-linejoin: round; }
.plot svg text { font-family: inherit; font-size: 8px; }
.legend {
  display: flex; flex-wrap: wrap; font-size: 0.875rem; gap: 0.125rem 1.5rem;
  list-style: none; margin: 0.25rem 0 0.75rem; padding: 0;
}
.legend li { align-items: baseline; display: flex; gap: 0.5rem; }
.swatch { flex: none; height: 8px; width: 28px; }
details { font-size: 0.875rem; margin-top: 0.5rem; }
summary { color: var(--quiet); cursor: pointer; }
.finding {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: 1.25rem 0; padding: 1.25rem 1.25rem 0.875rem;
}
.badge {
  border: 1px solid currentColor; border-radius: 5px; color: var(--bad);
  font-size: 0.875rem; padding: 0.0625rem 0.4375rem;
}
.facts {
  color: var(--quiet); display: flex; flex-wrap: wrap; font-size: 0.875rem;
  gap: 0 1.25rem; list-style: none; margin: 0.375rem 0 0; padding: 0;
}
.finding p, .finding ol { margin: 0.25rem 0; }
.finding ol { padding-left: 1.5rem; }
.finding td { white-space: nowrap; }
.chain {
  align-items: stretch; display: flex; flex-wrap: wrap; font-size: 0.875rem;
  gap: 0.5rem 0; list-style: none;
}
.finding .chain { margin: 0.5rem 0 1rem; padding: 0; }
.chain li { align-items: center; display: flex; max-width: 100%; }
.box {
  align-self: stretch; border: 1px solid var(--line); border-radius: 8px;
  display: flex; flex-direction: column; max-width: 19rem; min-width: 0;
  padding: 0.5rem 0.75rem;
}
.bad-box { border-color: var(--bad); }
.bad-box strong { color: var(--bad); }
.box .line {
  background: var(--shade); border-radius: 4px; margin-top: 0.25rem;
  padding: 0.125rem 0.375rem;
}
.arrow {
  fill: none; flex: none; margin: 0 0.375rem; stroke: currentColor; stroke-width: 1.5;
  width: 1.5rem;
}
.lines mark {
  background: none; border-left: 3px solid var(--bad); color: inherit;
  font-weight: 600; margin-left: -3px;
}
.ranges { font-size: 0.875rem; margin: 1rem 0; }
.range { margin: 0.5rem 0; }
.track, .ticks { height: 1.125rem; margin: 0 1.75rem; position: relative; }
.track span, .ticks span { position: absolute; }
.track span { bottom: 0; print-color-adjust: exact; top: 0; }
.track { border-bottom: 1px solid var(--line); }
.track .float32 { background: var(--shade); }
.track .float16 { background: var(--line); }
.track .zero { background: var(--quiet); left: 50%; width: 1px; }
.track .bar {
  background: var(--series-0); border-radius: 3px; bottom: 0.3125rem; top: 0.3125rem;
}
.ticks span {
  color: var(--quiet); font-size: 0.75rem; transform: translateX(-50%);
  white-space: nowrap;
}
.finding .where { font-size: 0.875rem; margin-top: 0.875rem; }
.finding .where code { font-size: 1em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.625rem; }
  h2 { margin-top: 2.5rem; }
  .plot svg text { font-size: 13px; }
  .chain, .chain li { align-items: stretch; flex-direction: column; }
  .box { max-width: none; }
  .arrow { margin: 0.25rem auto; transform: rotate(90deg); }
}
@media print {
  body { max-width: none; padding: 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .scroll { overflow: visible; }
  h2, h3, h4, caption, figcaption { break-after: avoid; }
  figure, tr, pre { break-inside: avoid; }
}
"""


def sheet() -> str:
    """The whole style sheet."""
    light, dark = _palette(_LIGHT), _palette(_DARK)
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
        f"{_RULES}"
    )


def _palette(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
