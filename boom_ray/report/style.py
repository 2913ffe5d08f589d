"""The look of the report page: one style sheet, light and dark, for screen and print."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2328; --muted: #59636e; --grid: #d8dee4; --paper: #ffffff; --panel: #f6f8fa; --mark: #d55e00;
  --bad: #fbe5d8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --muted: #9aa4af; --grid: #30363d; --paper: #0d1117; --panel: #161b22; --mark: #f08a4b;
    --bad: #46260f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1180px; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    "Noto Sans", "DejaVu Sans", sans-serif;
}
header p.name { margin: 0; color: var(--muted); font-size: .9rem; letter-spacing: .02em; }
h1 { margin: .25rem 0 1rem; font-size: 1.5rem; line-height: 1.3; font-weight: 650; max-width: 60rem;
  text-wrap: balance; }
h2 { margin: 3rem 0 .9rem; font-size: 1.15rem; font-weight: 650; }
h2 + p { margin-top: -.4rem; }
p { max-width: 46rem; }
ul.verdict { margin: 1.1rem 0 0; padding-left: 1.1rem; max-width: 60rem; }
ul.verdict li { margin: .15rem 0; }
ul.verdict li:last-child { color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2.4rem; margin: 1.6rem 0 0; padding: 0; }
.facts div { min-width: 6rem; }
.facts dt { color: var(--muted); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.12rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .35rem; }
th, td { padding: .34rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; font-size: .84rem; color: var(--muted); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th:first-child, td:first-child { padding-left: .4rem; }
tbody th { color: var(--ink); font-size: inherit; font-weight: 500; white-space: nowrap; }
.tight th, .tight td { padding-left: .4rem; padding-right: .4rem; }
.tight tbody, .tight tfoot { font-size: .92em; }
thead th[colspan] { text-align: left; color: var(--ink); }
thead tr:first-child:not(:last-child) th { border-bottom: 0; padding-bottom: 0; }
thead th, tfoot td, tfoot th { border-bottom: 1px solid var(--muted); }
tfoot td, tfoot th { font-weight: 600; color: var(--ink); border-bottom: 0; border-top: 1px solid var(--muted); }
tr.chosen > * { background: var(--panel); font-weight: 650; }
tr.chosen > :first-child { box-shadow: inset 3px 0 var(--mark); }
td.best { font-weight: 700; text-decoration: underline; text-decoration-color: var(--mark);
  text-decoration-thickness: 2px; text-underline-offset: 3px; }
td.quiet, td small { color: var(--muted); } td small { font-weight: 400; } td.down { background: var(--bad); }
.tag { margin-left: .4rem; padding: .05rem .45rem; border: 1px solid var(--mark); border-radius: 1rem;
  color: var(--mark); font-size: .76rem; font-weight: 600; }
td.group, th.group { border-left: 1px solid var(--grid); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 2.2rem 2.4rem; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
figure svg { width: 100%; height: auto; max-width: 40rem; }
figure svg text {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif !important;
}
figcaption { order: -1; margin-bottom: .6rem; font-size: .92rem; }
figcaption b { display: block; font-weight: 650; }
figcaption span { color: var(--muted); }
pre { margin: .6rem 0; padding: .9rem 1.1rem; overflow-x: auto; background: var(--panel); border-radius: 6px;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--muted); }
.muted { color: var(--muted); }
@media print {
  :root { --ink: #000; --muted: #444; --grid: #ccc; --paper: #fff; --panel: #f4f4f4; --bad: #e8e8e8; }
  body { font-size: 10pt; padding: 0; max-width: none; }
  figure, table, pre { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1rem; }
}
"""
