"""The style sheet of reports: light and dark, from a phone to a wide screen, and for print."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --muted: #57606a; --page: #ffffff; --line: #d0d7de;
  --soft: #f6f8fa; --link: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --muted: #9aa4af; --page: #0f1318; --line: #30363d;
    --soft: #181d24; --link: #6cb6ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 58rem; padding: 1.5rem 1rem 4rem;
  color: var(--text); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1, h2 { line-height: 1.25 }
h1 { margin: 0 }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem }
a { color: var(--link) }
.subtitle, caption, figcaption { color: var(--muted) }
.subtitle { margin: .25rem 0 0 }
nav ol { columns: 16rem; padding-left: 1.25rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .35rem }
th, td { padding: .3rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { background: var(--soft) }
.number { text-align: right; white-space: nowrap }
td.text { min-width: 14rem }
figure { margin: 1.25rem 0 }
.figures, .images { display: grid; gap: .5rem 1rem; align-items: start; margin: 1.25rem 0 }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
.images { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)) }
.figures figure, .images figure { margin: 0 0 .75rem }
.figures figure { display: flex; flex-direction: column }
.figures figcaption { order: -1; color: var(--text); font-weight: 600 }
.images figcaption { font-size: .8rem; line-height: 1.35; white-space: pre-line }
.images img { width: 100%; max-width: 10rem; display: block; image-rendering: pixelated }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px }
pre { overflow-x: auto; padding: .75rem; background: var(--soft); border: 1px solid var(--line);
  border-radius: 4px; font: .875rem/1.45 ui-monospace, monospace }
@media (max-width: 36rem) {
  th, td { padding: .3rem .45rem }
  td.text { min-width: 0 }
  .cards, .cards caption, .cards tbody, .cards tr { display: block }
  .cards thead { display: none }
  .cards tr { border: 1px solid var(--line); border-radius: 4px; margin-bottom: .6rem; padding: .2rem 0 }
  .cards td { display: flex; justify-content: space-between; gap: 1rem; border: none; padding: .1rem .6rem;
    text-align: right; white-space: normal; overflow-wrap: anywhere }
  .cards td:first-child { font-weight: 600 }
  .cards td::before { content: attr(data-label); color: var(--muted); font-weight: 400; text-align: left;
    overflow-wrap: normal } }
@media print {
  .wide, pre { overflow: visible } pre { white-space: pre-wrap } tr, figure { break-inside: avoid } }
"""
