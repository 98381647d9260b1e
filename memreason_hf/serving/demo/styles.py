"""The style sheet of the page, for light and dark mode and for narrow screens."""

from collections.abc import Sequence

from memreason_hf.analysis.kind_colours import kind_colours
from memreason_hf.analysis.token_depth_page import depth_rules
from memreason_hf.analysis.token_depths import DepthScale
from memreason_hf.steps import KINDS


# Lines of the chart: the colours of Okabe and Ito, lighter in dark mode where they would be hard to see.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_DARK_LINES = ("#56B4E9", "#E69F00", "#2CC79A", "#E3A8C8")

_STYLE = """\
:root { --mr-text: #1c1e21; --mr-quiet: #5c636b; --mr-line: #d9dde1; --mr-page: #ffffff; --mr-hit: #cfe8ff;
  --mr-bar: #dcecf9; --mr-error: #a4262c; --mr-note: #6b4e00; --mr-frame: #c2185b; }
.dark { --mr-text: #e6e8ea; --mr-quiet: #a2a9b1; --mr-line: #3a4149; --mr-page: #18181b; --mr-hit: #1d4a6e;
  --mr-bar: #22384a; --mr-error: #ff9a9f; --mr-note: #f0cf7a; --mr-frame: #ff80ab; }
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.mr-head h1 { margin: 0; font-size: 1.35rem; font-weight: 650; overflow-wrap: anywhere; color: var(--mr-text); }
.mr-head p { margin: 0.15rem 0 0; }
.mr-quiet { color: var(--mr-quiet); font-size: 0.85rem; overflow-wrap: anywhere; }
.mr-legend { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 0.9rem; font-size: 0.82rem;
  color: var(--mr-text); }
.mr-legend label { cursor: pointer; white-space: nowrap; }
.mr-legend input { margin: 0 0.25rem 0 0; vertical-align: -0.1em; width: 1em; height: 1em; }
.mr-cells { display: inline-flex; flex-wrap: wrap; border-radius: 4px; overflow: hidden; vertical-align: middle; }
.mr-cells .mr-t { min-width: 1.9rem; text-align: center; box-shadow: none; cursor: default; }
.mr-panel h3, .mr-panel .mr-title { margin: 0 0 0.2rem; font-size: 0.78rem; font-weight: 600; color: var(--mr-quiet); }
.mr-panel { color: var(--mr-text); line-height: 1.45; }
.mr-text { font: 0.95rem/1.85 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; color: var(--mr-text); }
.mr-prompt { padding-left: 0.7rem; border-left: 3px solid var(--mr-line); margin-bottom: 0.8rem; }
.mr-prompt .mr-text { max-height: 13rem; overflow-y: auto; }
.mr-answer { margin-bottom: 0.5rem; min-height: 3.4rem; }
.mr-answer .mr-text { font-size: 1.02rem; }
.mr-t { padding: 0.15em 0; box-shadow: inset -1px 0 var(--mr-page); box-decoration-break: clone;
  -webkit-box-decoration-break: clone; cursor: pointer; }
.mr-t:hover { outline: 2px solid var(--mr-text); outline-offset: -1px; }
.mr-t.mr-selected { outline: 2px solid var(--mr-frame); outline-offset: 0; }
.mr-t.mr-differs { text-decoration: underline wavy var(--mr-frame) 2px; text-underline-offset: 0.25em;
  font-weight: 700; }
.mr-mark { font-size: 0.8em; padding: 0.12em 0.3em; font-style: italic; }
.mr-end { opacity: 0.55; user-select: none; font-style: normal; }
body:has(#mr-numbers:checked) .mr-text .mr-t[data-depth]::after { content: attr(data-depth); font-size: 0.62em;
  vertical-align: super; line-height: 0; margin: 0 0.15em 0 0.1em; }
.mr-step { border-left: 4px solid var(--mr-line); padding: 0.05rem 0 0.05rem 0.7rem; margin: 0 0 0.35rem; }
.mr-kind { display: inline-block; border: 1.5px solid var(--k, var(--mr-line)); border-radius: 999px;
  padding: 0 0.55em; margin-right: 0.5em; font: 600 0.72rem/1.6 system-ui, sans-serif; color: var(--mr-text); }
.mr-step[class*="k-"] { border-left-color: var(--k); }
.mr-cursor { display: inline-block; width: 0.55em; height: 1.1em; vertical-align: -0.2em; background: var(--mr-quiet);
  animation: mr-blink 1s steps(2) infinite; }
@keyframes mr-blink { 50% { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .mr-cursor { animation: none; } }
.mr-profile { display: flex; align-items: flex-end; gap: 1px; height: 2.6rem; margin: 0.3rem 0; overflow: hidden;
  border-bottom: 1px solid var(--mr-line); }
.mr-profile i { flex: 1 1 0; max-width: 1.4rem; min-width: 1px; border-radius: 2px 2px 0 0; }
.mr-cost { margin: 0.4rem 0 0; display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; font-size: 0.85rem;
  color: var(--mr-quiet); }
.mr-cost b { color: var(--mr-text); font-weight: 650; font-variant-numeric: tabular-nums; }
.mr-message { border: 1px solid currentColor; border-left-width: 4px; border-radius: 6px; padding: 0.55rem 0.8rem;
  font-size: 0.92rem; overflow-wrap: anywhere; margin-bottom: 0.6rem; }
.mr-error { color: var(--mr-error); }
.mr-note { color: var(--mr-note); }
.mr-empty { color: var(--mr-quiet); font-size: 0.92rem; padding: 0.4rem 0; }
/* Without containment, the width of the table would widen a narrow page. */
.mr-scroll { contain: inline-size; max-height: 24rem; overflow: auto; border: 1px solid var(--mr-line);
  border-radius: 6px; }
.mr-scroll:focus-visible { outline: 2px solid var(--mr-frame); }
table.mr-lens { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.85rem; margin: 0;
  font-variant-numeric: tabular-nums; color: var(--mr-text); }
table.mr-lens th, table.mr-lens td { padding: 0.16rem 0.5rem; border: 0; text-align: left; white-space: nowrap; }
table.mr-lens thead th { position: sticky; top: 0; z-index: 2; background: var(--mr-page); font-size: 0.75rem;
  color: var(--mr-quiet); border-bottom: 1px solid var(--mr-line); font-weight: 600; }
table.mr-lens tbody th { text-align: right; font-weight: 500; color: var(--mr-quiet); background: var(--mr-page);
  position: sticky; left: 0; z-index: 1; }
table.mr-lens thead th:first-child { left: 0; z-index: 3; }
table.mr-lens tbody td { background: linear-gradient(var(--mr-bar), var(--mr-bar)) no-repeat left / var(--p, 0) 100%; }
table.mr-lens td.mr-hit { background-image: linear-gradient(var(--mr-hit), var(--mr-hit)); font-weight: 600; }
table.mr-lens small { color: var(--mr-quiet); font-weight: 400; }
table.mr-lens tr.mr-halted th, table.mr-lens tr.mr-halted td { box-shadow: inset 0 1.5px var(--mr-frame),
  inset 0 -1.5px var(--mr-frame); }
table.mr-lens em { color: var(--mr-frame); font-style: normal; font-size: 0.72rem; margin-left: 0.3rem; }
.mr-chart { width: 100%; height: 8rem; display: block; }
.mr-line { fill: none; stroke-width: 2.2; vector-effect: non-scaling-stroke; stroke: var(--l); }
.mr-grid { stroke: var(--mr-line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.mr-here { stroke: var(--mr-frame); stroke-width: 1.5; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.mr-keys { display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; font-size: 0.85rem; margin: 0.2rem 0; }
.mr-key::before { content: ""; display: inline-block; width: 1rem; height: 3px; background: var(--l);
  vertical-align: 0.25em; margin-right: 0.35rem; }
.mr-axis { position: relative; height: 1.2rem; font-size: 0.75rem; color: var(--mr-quiet); margin: 0 0 0.6rem; }
.mr-axis span { position: absolute; transform: translateX(-50%); }
.mr-axis span:first-child { transform: none; }
.mr-axis span:last-child { transform: translateX(-100%); }
@media (max-width: 640px) {
  .gradio-container .main, .gradio-container main { padding: 0.6rem !important; }
  table.mr-lens th, table.mr-lens td { padding: 0.16rem 0.3rem; }
}
"""


def style_sheet(deepest: int, kinds: Sequence[str] = KINDS) -> str:
    """
    The style sheet for depths from 1 to `deepest` and kinds of steps, as a `<style>` element for the head of the page.

    A depth has one colour on the whole page, whatever the answer, so that answers can be compared.
    """
    scale, depths = DepthScale(1, deepest), range(1, deepest + 1)
    colours = "".join(f".k-{kind} {{ --k: {colour}; }}\n" for kind, colour in kind_colours(kinds).items())
    lines = "".join(f".l{i} {{ --l: {light}; }}\n.dark .l{i} {{ --l: {dark}; }}\n" for i, (light, dark) in _pairs())
    rules = depth_rules(depths, scale) + depth_rules(depths, scale, dark=True, within=".dark ")
    return f"<style>\n{_STYLE}{colours}{lines}{rules}</style>"


def _pairs():
    return enumerate(zip(_LINES, _DARK_LINES, strict=True))
