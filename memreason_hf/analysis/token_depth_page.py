"""Text with the depth of every token as one self-contained HTML page."""

from collections.abc import Iterable, Sequence
from html import escape

from memreason_hf.analysis.token_depths import (
    DepthScale,
    GeneratedText,
    Piece,
    depth_statistics,
    map_color,
    text_color,
)
from memreason_hf.messages import visible


# Colour map and its range on light and dark pages: a shallow token has nearly the colour of the page.
_LIGHT = ("YlGnBu", 0.0, 0.92)
_DARK = ("viridis", 0.0, 1.0)

_STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1c1e21; --quiet: #5c636b; --line: #d9dde1; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --text: #e6e8ea; --quiet: #a2a9b1; --line: #353b42; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 58rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.25rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 0.25rem; font-size: 0.8rem; font-weight: 600; color: var(--quiet); }
p { margin: 0; }
.quiet { color: var(--quiet); font-size: 0.85rem; overflow-wrap: anywhere; }
.legend { position: sticky; top: 0; margin: 0.75rem 0 1rem; padding: 0.6rem 0; display: flex; flex-wrap: wrap;
  align-items: center; gap: 0.35rem 1rem; background: var(--page); border-bottom: 1px solid var(--line);
  font-size: 0.85rem; z-index: 1; }
.cells { display: inline-flex; }
.cells .t { padding: 0.1rem 0; min-width: 2.1rem; text-align: center; }
article { margin: 0 0 1.75rem; }
article > div { margin: 0 0 0.75rem; }
.text { font: 0.95rem/1.75 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4; }
.prompt { padding-left: 0.75rem; border-left: 3px solid var(--line); }
.t { padding: 0.15em 0; box-shadow: inset -1px 0 var(--page); box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.t:hover { outline: 2px solid var(--text); outline-offset: -1px; }
.mark { font-size: 0.8em; padding: 0.12em 0.3em; font-style: italic; }
.end { opacity: 0.6; user-select: none; }
/* The title of the token under the pointer, without the delay of a tooltip. */
.text .t:hover::before { content: attr(title); position: fixed; left: 0; right: 0; bottom: 0; z-index: 2;
  padding: 0.5rem 1.25rem; background: var(--text); color: var(--page); text-align: center; font-size: 0.9rem; }
body:has(#numbers:checked) .text .t::after { content: attr(data-depth); font-size: 0.65em; vertical-align: super;
  line-height: 0; margin: 0 0.15em 0 0.1em; }
label { cursor: pointer; white-space: nowrap; }
"""


def render_page(texts: Sequence[GeneratedText], title: str, description: str, scale: DepthScale | None = None) -> str:
    """
    A page with a legend, and every prompt and its continuation, each token in the colour of its depth.

    The name, the id and the recurrences of a token appear under the pointer. A switch shows the recurrences of all
    tokens. The page loads nothing and runs no script, and every text is escaped.

    Args:
        texts: prompts and continuations.
        title: a heading, for example the name of the model.
        description: a line on how depth and tokens were decided.
        scale: the colour scale; by default from the least to the greatest depth on the page.
    """
    scale = DepthScale.over(texts) if scale is None else scale
    articles = "\n".join(_article(text, number, len(texts)) for number, text in enumerate(texts, 1))
    # Rules only for the depths that appear.
    depths = {token.num_recurrences for text in texts for piece in _all_pieces(text) for token in piece.tokens}
    depths |= set(scale.legend())
    cells = "".join(f'<span class="t d{depth}">{depth}</span>' for depth in scale.legend())
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}: recurrences of each token</title>
<style>
{_STYLE}{_depth_colors(depths, scale)}</style>
</head>
<body>
<header>
<h1>{_escape(title)}</h1>
<p class="quiet">{_escape(description)}</p>
</header>
<div class="legend">
<span>Recurrences <span class="cells">{cells}</span></span>
<label><input type="checkbox" id="numbers"> show numbers</label>
<span class="quiet">Tokens of a prompt: at their own position. Later tokens: where they were predicted.</span>
</div>
<main>
{articles}
</main>
</body>
</html>
"""


def _article(text, number, count):
    statistics = depth_statistics([text])
    of = f" {number} of {count}" if count > 1 else ""
    tokens = len(text.depths)
    summary = (
        f"{tokens} token{'s' if tokens != 1 else ''}, {statistics['minimum']} to {statistics['maximum']} recurrences, "
        f"mean {statistics['mean']:.1f}; ended by "
        f"{'the model' if text.finish_reason == 'eos' else 'max_new_tokens'}"
    )
    return f"""\
<article>
<div class="prompt"><h2>Prompt{of}</h2><div class="text" dir="auto">{_spans(text.prompt_pieces)}</div></div>
<div><h2>Continuation</h2><div class="text" dir="auto">{_spans(text.pieces)}</div></div>
<p class="quiet">{summary}</p>
</article>"""


def _all_pieces(text):
    return (*text.prompt_pieces, *text.pieces)


def _spans(pieces: Iterable[Piece]) -> str:
    return "".join(map(_span, pieces))


def _span(piece):
    depth = piece.num_recurrences
    tip = "; ".join(f"{visible(token.token)} (id {token.id}): {_recurrences(token)}" for token in piece.tokens)
    kind, shown = "t", _escape(piece.text).replace("\n", '<i class="end">↵</i>\n')
    if not piece.text:
        kind, shown = "t mark", _escape(" ".join(token.token for token in piece.tokens))
    # The last line break stands outside, so that the number comes before it.
    end = "\n" if shown.endswith("\n") else ""
    shown = shown.removesuffix("\n")
    return f'<span class="{kind} d{depth}" data-depth="{depth}" title="{_escape(tip)}">{shown}</span>{end}'


def _recurrences(token):
    return f"{token.num_recurrences} recurrence{'s' if token.num_recurrences != 1 else ''}"


def depth_rules(depths: Iterable[int], scale: DepthScale, *, dark: bool = False, within: str = "") -> str:
    """
    CSS rules that give the classes `d1`, `d2`, ... the colours of their depths.

    Args:
        depths: the depths that need a rule.
        dark: for dark pages.
        within: a selector that comes before each class.

    Example:
        >>> print(depth_rules([2], DepthScale(1, 4), within=".page "), end="")
        .page .d2 { background: #55bec1; color: #000000; }
    """
    name, low, high = _DARK if dark else _LIGHT
    rules = []
    for depth in sorted(depths):
        background = map_color(name, low + (high - low) * scale.position(depth))
        colours = f"background: {_hex(background)}; color: {_hex(text_color(background))};"
        rules.append(f"{within}.d{depth} {{ {colours} }}\n")
    return "".join(rules)


def _depth_colors(depths, scale):
    light, dark = (depth_rules(depths, scale, dark=dark) for dark in (False, True))
    return f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _hex(color):
    return "#" + "".join(f"{part:02x}" for part in color)


def _escape(text):
    return escape(visible(text))
