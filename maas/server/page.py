"""The page that a server shows to people: which models are here, and how each one is called.

One HTML document and nothing else: no file beside it, no request to elsewhere, no build. It
works without its script, which copies examples and keeps the figures (`live.py`) up to date.
What comes from models is text and stays text: all of it is escaped, and the policy lets the
browser run nothing but the one style and the one script of the page, known by their hashes.
"""

import base64
import hashlib
import html
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maas.backends.base import Method
from maas.calls import CALL
from maas.executors.base import ModelInfo
from maas.http import Headers
from maas.server import examples, live
from maas.server.examples import Layer
from maas.signature import Signature

__all__ = ["SECURITY", "index"]

MAX_LAYERS = 200
"""Layers listed for one model: a page of all 3,000 of a large one is slow and nobody reads it."""

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1d1d1b; --soft: #5c5c57; --line: #e5e4df; --code: #f5f4f0; --mark: #0a655a; --bad: #a3262a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #151514; --ink: #ecebe6; --soft: #a6a59d; --line: #30302c; --code: #1e1e1c; --mark: #7fcdbd; --bad: #f08a86; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1.5rem; }
body { margin: 0 auto; max-width: 50rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
a { color: var(--mark); text-decoration-thickness: 1px; text-underline-offset: .2em; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 3px; border-radius: 3px; }
header { padding: 3.5rem 0 0; }
h1 { margin: 0; font-size: 1.75rem; font-weight: 620; letter-spacing: -.02em; line-height: 1.25; overflow-wrap: anywhere; }
header p { margin: .4rem 0 0; color: var(--soft); }
header .key { margin-top: 1.25rem; padding: .7rem 1rem; border: 1px solid var(--line); border-radius: 8px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0 0; padding: 0; list-style: none; }
article { margin-top: 2.75rem; padding-top: 2.25rem; border-top: 1px solid var(--line); }
h2 { margin: 0; font-size: 1.35rem; font-weight: 620; letter-spacing: -.01em; line-height: 1.3; overflow-wrap: anywhere; }
h2 a { color: inherit; text-decoration: none; }
h2 a:hover { text-decoration: underline; }
.facts { margin: .15rem 0 0; color: var(--soft); font-size: .9375rem; }
.method { margin-top: 1.6rem; }
h3 { margin: 0; font-size: .9375rem; font-weight: 400; line-height: 1.65; padding-left: 4ch; text-indent: -4ch; overflow-wrap: anywhere; }
h3 code { color: var(--soft); }
h3 span { display: inline-block; text-indent: 0; }
h3 b { color: var(--ink); font-weight: 650; }
.doc { margin: .3rem 0 0; overflow-wrap: anywhere; }
.doc + .facts, .facts + .facts { margin-top: .1rem; }
details { margin-top: .9rem; }
summary { width: fit-content; color: var(--soft); font-size: .9375rem; cursor: pointer; border-radius: 3px; }
summary:hover { color: var(--ink); }
figure { position: relative; margin: .6rem 0 0; border-radius: 8px; background: var(--code); }
figcaption { padding: .6rem 1rem 0; color: var(--soft); font-size: .8125rem; }
pre { margin: 0; padding: .35rem 1rem .85rem; font-size: .84375rem; line-height: 1.6; overflow-x: auto; border-radius: 8px; }
button { position: absolute; top: .4rem; right: .5rem; padding: .15rem .6rem; border: 1px solid transparent; border-radius: 6px;
  background: var(--code); color: var(--soft); font: inherit; font-size: .8125rem; cursor: pointer; }
button:hover { border-color: var(--line); color: var(--ink); }
.wide { overflow-x: auto; }
table { width: 100%; margin-top: .6rem; border-collapse: collapse; font-size: .84375rem; }
th { color: var(--soft); font-weight: 400; text-align: left; }
th, td { padding: .35rem 1.25rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; text-align: right; font-variant-numeric: tabular-nums; }
td span { white-space: nowrap; }
footer { margin-top: 3.5rem; padding: 1.25rem 0 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .875rem; }
footer p { margin: 0; }
@media (max-width: 30rem) { header { padding-top: 2rem; } body { padding: 0 1rem; } }
@media print { button, nav { display: none; } pre { white-space: pre-wrap; } }
"""  # noqa: E501 - one rule a line

_SCRIPT = """
const say = document.getElementById('said');
let timer;
const copy = async (text, node) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const range = document.createRange();  // over plain http the clipboard is reached by selecting
  range.selectNodeContents(node);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  if (!document.execCommand('copy')) throw new Error('copy');
};
for (const pre of document.querySelectorAll('figure > pre')) {
  const button = document.createElement('button');
  const name = 'Copy the ' + pre.previousElementSibling.textContent + ' example';
  button.type = 'button';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', name);
  button.addEventListener('click', async () => {
    let word = 'Copied';
    try { await copy(pre.textContent, pre); } catch { word = 'Press Ctrl+C'; }
    button.textContent = say.textContent = word;
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
    clearTimeout(timer);
    timer = setTimeout(() => { say.textContent = ''; }, 1600);
  });
  pre.after(button);
}
"""


_STYLE += live.STYLE
_SCRIPT += live.SCRIPT


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_POLICY = (
    "default-src 'none'",
    f"style-src '{_hash(_STYLE)}'",
    f"script-src '{_hash(_SCRIPT)}'",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)

SECURITY: Headers = (
    ("content-security-policy", "; ".join(_POLICY)),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    # One address gives HTML to browsers and data to programs, and to each key its own models.
    ("vary", "accept, authorization"),
    ("cache-control", "no-store"),
)
"""Headers that belong to the page."""

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='6' fill='%230a655a'/%3E%3C/svg%3E"
)


def index(
    infos: Mapping[str, ModelInfo],
    base: str,
    locked: bool,
    figures: Mapping[str, str] | None = None,
) -> bytes:
    """The page for these models, served at `base`.

    `locked` tells that calls need a key; `figures` is what `live.shown` made of their status.
    """
    body = [
        *_header(infos, base, locked, figures),
        "<main>",
        *itertools.chain.from_iterable(
            _article(name, info, f"{base}/{name}", locked, figures) for name, info in infos.items()
        ),
        "</main>",
        *_footer(infos),
        "<p id='said' class='doc' role='status'></p>",
        f"<script>{_SCRIPT}</script>",
    ]
    head = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(_title(infos))}</title><link rel='icon' href=\"{_ICON}\">",
        f"<style>{_STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *body, "</body></html>\n"]).encode("utf-8", "replace")


def _text(value: object) -> str:
    return html.escape(str(value))


def _title(infos: Mapping[str, ModelInfo]) -> str:
    return (
        f"{next(iter(infos))} · maas"
        if len(infos) == 1
        else f"{_count(len(infos), 'model')} · maas"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# Header and footer.


def _header(
    infos: Mapping[str, ModelInfo], base: str, locked: bool, figures: Mapping[str, str] | None
) -> Iterator[str]:
    yield f"<header><h1>{_text(re.sub('^https?://', '', base))}</h1>"
    told = f"serves {_count(len(infos), 'model')}" if infos else "serves no model that you may see"
    yield f"<p>{told} with maas.</p>"
    if figures is not None:
        yield from live.header(figures)
    if locked:
        variable = "<code>MAAS_KEY</code>"
        yield f"<p class='key'>Calls need a key. The examples read it from {variable}.</p>"
    if len(infos) > 1:
        items = "".join(f"<li><a href='#{_text(name)}'>{_text(name)}</a></li>" for name in infos)
        yield f"<nav aria-label='Models'><ul>{items}</ul></nav>"
    yield "</header>"


def _footer(infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    versions: dict[str, str] = {}
    for info in infos.values():
        versions |= info.versions
    told = [f"{_text(name)} {_text(version)}" for name, version in versions.items()]
    body = max((info.limits.get("body", 0) for info in infos.values()), default=0)
    if body:
        told.append(f"messages up to {body / 2**20:,.0f} MiB")
    yield f"<footer><p>{' · '.join(told)}</p></footer>"


# A model.

_KINDS = {"torch": "torch module", "function": "Python function", "object": "Python object"}
_MODES = {True: "train mode", False: "eval mode"}


def _article(
    name: str, info: ModelInfo, url: str, locked: bool, figures: Mapping[str, str] | None
) -> Iterator[str]:
    yield f"<article id='{_text(name)}' aria-labelledby='{_text(name)}-name'>"
    yield f"<h2 id='{_text(name)}-name'><a href='{_text(url)}'>{_text(name)}</a></h2>"
    facts = [_KINDS.get(info.kind, info.kind), info.device, _MODES.get(info.training)]  # type: ignore[arg-type]
    yield f"<p class='facts'>{' · '.join(_text(fact) for fact in facts if fact)}</p>"
    if figures is not None:
        yield from live.tiles(name, figures)
    # The model itself first: it is what most callers want.
    methods = sorted(info.methods.values(), key=lambda method: method.name != CALL)
    for number, method in enumerate(methods):
        yield from _method(
            name, info, method, _Example(info, method, url, locked), opened=number == 0
        )
    yield from _layers(list(examples.layers(info)))
    yield "</article>"


class _Example:
    """The two ways to write one call."""

    def __init__(self, info: ModelInfo, method: Method, url: str, locked: bool) -> None:
        self.python = examples.python(info, method, url, locked=locked)
        self.shell = examples.curl(info, method, url, locked=locked)

    def figures(self) -> Iterator[str]:
        """Both as HTML, each under its name."""
        shell = "curl" if "curl " in self.shell else "shell"
        for caption, code in (("Python", self.python), (shell, self.shell)):
            # Reached by keyboard as well, since a long line scrolls.
            pre = f"<pre tabindex='0' aria-label='{caption} example'>{_text(code)}</pre>"
            yield f"<figure><figcaption>{caption}</figcaption>{pre}</figure>"


def _method(
    model: str, info: ModelInfo, method: Method, example: _Example, *, opened: bool
) -> Iterator[str]:
    name = model if method.name == CALL else f"{model}.{method.name}"
    yield "<section class='method'>"
    yield f"<h3><code><b>{_text(name)}</b>{_signature(method.signature)}</code></h3>"
    if method.doc:
        yield f"<p class='doc'>{_text(method.doc)}</p>"
    traits = list(_traits(info, method))
    if traits:
        yield f"<p class='facts'>{' · '.join(traits)}</p>"
    yield f"<details{' open' if opened else ''}><summary>Example</summary>"
    yield from example.figures()
    yield "</details></section>"


def _signature(signature: Signature) -> str:
    """As Python writes it, to be broken between parameters and not within."""
    text = _text(signature.render(""))
    done = ""
    for each in signature.parameters:
        before, parameter, text = text.partition(_text(each))
        # With the comma or parenthesis behind it, which begins no line either.
        done += f"{before}<span>{parameter}{text[:1]}</span>"
        text = text[1:]
    end, arrow, returns = text.partition(" -&gt; ")
    # Outside the span, which begins no line with a space.
    return f"{done}{end} <span>{arrow[1:]}{returns}</span>" if arrow else done + end


def _traits(info: ModelInfo, method: Method) -> Iterator[str]:
    if method.streams:
        yield "streams its items"
    if method.stochastic:
        yield "draws random numbers"
    if method.pure and info.kind != "torch":
        yield "safe to repeat"


# Layers.


def _layers(layers: list[Layer]) -> Iterator[str]:
    if not layers:
        return
    total = _short(sum(layer.size for layer in layers))
    yield f"<details><summary>{_count(len(layers), 'layer')}, {total} parameters</summary>"
    yield "<div class='wide' tabindex='0' role='region' aria-label='Layers'><table><thead><tr>"
    yield "".join(
        f"<th scope='col'>{word}</th>" for word in ("Layer", "Type", "Parameters", "Size")
    )
    yield "</tr></thead><tbody>"
    yield from (_row(layer) for layer in layers[:MAX_LAYERS])
    yield "</tbody></table></div>"
    if len(layers) > MAX_LAYERS:
        more = _count(len(layers) - MAX_LAYERS, "more layer")
        yield f"<p class='facts'>and {more}; model.describe() lists all</p>"
    yield "</details>"


def _row(layer: Layer) -> str:
    parameters = "<br>".join(
        f"<span>{_text(key)} {_text(dtype)}{_text(list(shape))}</span>"
        for key, (dtype, shape) in layer.parameters.items()
    )
    name = _text(layer.name or "(itself)")
    cells: Iterable[Any] = (
        f"<code>{name}</code>",
        _text(layer.type),
        f"<code>{parameters}</code>",
        f"{layer.size:,}",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _short(number: int) -> str:
    """A large number as people say it: 61.1 million."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:,}"
