"""How the models are doing, as the page shows it: a row of small pictures under each name.

The words and the paths are made here, once, for both: the page as it is sent, which is true when
it is loaded and needs no script, and the script that asks `maas/status` every other second and
puts the new ones in their places. So the script knows neither numbers nor pictures.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["SCRIPT", "STYLE", "header", "shown", "tiles"]

WIDE, HIGH = 120.0, 32.0
"""The pictures' own units; they are stretched to their tiles."""

STYLE = """
.vital { font-variant-numeric: tabular-nums; }
.vital .state { margin-left: .75rem; color: var(--mark); }
.vital .state::before { content: ""; display: inline-block; width: .5rem; height: .5rem; margin-right: .4rem; border-radius: 50%; background: currentColor; }
.vital .state:empty, .vital .state:empty + button { display: none; }
.vital button { position: static; margin-left: .75rem; border-color: var(--line); }
.live { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin-top: 1.1rem; }
.tile { min-width: 0; padding: .7rem .9rem .75rem; border: 1px solid var(--line); border-radius: 8px; }
.tile p { margin: 0; color: var(--soft); font-size: .8125rem; line-height: 1.45; font-variant-numeric: tabular-nums; white-space: pre-line; }
.tile .now { margin: .1rem 0 .35rem; color: var(--ink); font-size: 1.375rem; font-weight: 560; letter-spacing: -.015em; line-height: 1.3; }
.tile svg { display: block; width: 100%; height: 2.25rem; margin-bottom: .4rem; overflow: visible; }
.tile path { vector-effect: non-scaling-stroke; stroke-width: 1.5; stroke-linecap: round; stroke-linejoin: round; fill: none; stroke: var(--mark); }
.tile .area { stroke: none; fill: var(--mark); opacity: .13; }
.tile .faint { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.tile .bars { stroke: none; fill: var(--mark); opacity: .75; }
.tile .bad { stroke: none; fill: var(--bad); }
.tile .floor { stroke: var(--line); stroke-width: 1; }
.facts.totals { margin-top: .7rem; }
"""  # noqa: E501 - one rule a line

SCRIPT = """
const places = [...document.querySelectorAll('[data-live]')];
const state = document.querySelector('.vital .state');
if (state) {
  const pause = state.nextElementSibling;
  let timer, asking = false, paused = false;
  const show = (page) => {
    for (const place of places) {
      const told = page[place.dataset.live] ?? '';
      if (place.tagName === 'path') place.setAttribute('d', told);
      else if (place.textContent !== told) place.textContent = told;
    }
  };
  const poll = async () => {
    clearTimeout(timer);
    if (paused || asking || document.hidden) return;
    asking = true;
    try {
      const reply = await fetch('maas/status', { cache: 'no-store' });
      if (!reply.ok) throw new Error(reply.status);
      show((await reply.json()).page);
      if (!paused) state.textContent = 'live';
    } catch { state.textContent = 'no answer from the server'; }
    asking = false;
    timer = setTimeout(poll, 2000);
  };
  pause.addEventListener('click', () => {
    paused = !paused;
    state.textContent = paused ? 'paused' : 'live';
    pause.textContent = paused ? 'Go on' : 'Pause';
    poll();
  });
  document.addEventListener('visibilitychange', poll);
  state.textContent = 'live';
  poll();
}
"""

_DASH = "\N{EN DASH}"


def header(page: Mapping[str, str]) -> Iterator[str]:
    """What concerns the server as a whole."""
    yield f"<p class='vital'><span data-live='server'>{html.escape(page['server'])}</span> "
    yield "<span class='state' role='status'></span>"
    yield "<button class='pause' type='button'>Pause</button></p>"


def tiles(name: str, page: Mapping[str, str]) -> Iterator[str]:
    """The figures of one model."""

    def text(key: str, kind: str = "more") -> str:
        told = html.escape(page[f"{name}.{key}"])
        return f"<p class='{kind}'><span data-live='{html.escape(name)}.{key}'>{told}</span></p>"

    def path(key: str, kind: str) -> str:
        place = f"{html.escape(name)}.{key}"
        return f"<path class='{kind}' data-live='{place}' d='{page[f'{name}.{key}']}'/>"

    pictures = {
        "rate": ("Calls a second", path("rate-area", "area") + path("rate-line", "line")
                 + path("bad-bars", "bad")),
        "latency": ("Latency, median", path("p99-line", "faint") + path("p50-area", "area")
                    + path("p50-line", "line")),
        "queue": ("Wait in the queue", path("queue-area", "area") + path("queue-line", "line")),
        "batch": ("Calls in a batch", path("batch-bars", "bars")),
    }  # fmt: skip
    yield f"<div class='live' role='group' aria-label='{html.escape(name)}, live figures'>"
    for key, (what, paths) in pictures.items():
        yield f"<div class='tile'><p>{what}</p>{text(key, 'now')}"
        yield f"<svg viewBox='0 0 {WIDE:g} {HIGH:g}' preserveAspectRatio='none' role='img' "
        yield f"aria-label='{what}, {_SPANS[key]}'><path class='floor' d='M0 {HIGH:g}H{WIDE:g}'/>"
        yield f"{paths}</svg>{text(f'{key}-more')}</div>"
    yield "</div>"
    yield text("totals", "facts totals")


_SPANS = dict.fromkeys(("rate", "latency", "queue"), "the last two minutes")
_SPANS["batch"] = "by size, the last minute"


# What is shown.


def shown(status: dict[str, Any]) -> dict[str, str]:
    """Words and paths by their places, of what `status.status` gave."""
    page = {"server": _server(status)}
    for name, figures in status["models"].items():
        page |= {f"{name}.{key}": told for key, told in _model(figures).items()}
    return page


def _server(status: dict[str, Any]) -> str:
    opened = status["connections"]
    told = [f"Up {_span(status['uptime_seconds'])}"]
    if opened is not None:
        told.append(f"{opened:,} connection{'' if opened == 1 else 's'}")
    return " \N{MIDDLE DOT} ".join(told)


def _model(figures: dict[str, Any]) -> dict[str, str]:
    steps, recent = figures["steps"], figures["recent"]
    top = max(*steps["rate"], 1e-9)
    slowest, longest = _height(steps["p99"]), _height(steps["queue_p99"])
    latency, queue = recent["latency"], recent["queue"]
    sizes = list(recent["batches"])
    return {
        "rate": _number(steps["rate"][-1]),
        "rate-line": _line(steps["rate"], top),
        "rate-area": _area(steps["rate"], top),
        "bad-bars": _bars(steps["failures"], top),
        "rate-more": f"most {_number(max(steps['rate']))}\n{figures['in_flight']:,} in flight",
        "latency": _time(latency["p50"]),
        "p50-line": _line(steps["p50"], slowest),
        "p50-area": _area(steps["p50"], slowest),
        "p99-line": _line(steps["p99"], slowest),
        "latency-more": f"p99 {_time(latency['p99'])}\np99.9 {_time(latency['p99.9'])}",
        "queue": _time(recent["queue_mean"]),
        "queue-line": _line(steps["queue_p99"], longest),
        "queue-area": _area(steps["queue_p99"], longest),
        "queue-more": f"p99 {_time(queue['p99'])}\nthe run {_time(recent['compute_mean'])}",
        "batch": _DASH if recent["batch_mean"] is None else _number(recent["batch_mean"]),
        "batch-bars": _bars(list(recent["batches"].values()), None),
        "batch-more": f"up to {sizes[-1]}\nlast minute" if sizes else "no runs in\nthe last minute",
        "totals": _totals(figures),
    }


def _totals(figures: dict[str, Any]) -> str:
    calls, failures = figures["requests"], figures["failures"]
    told = f"{calls:,} call{'' if calls == 1 else 's'}"
    if failures:
        kinds = sorted(figures["errors"].items(), key=lambda kind: -kind[1])
        told += f", {failures:,} failed: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds)
    elif calls:
        told += ", none failed"
    received, sent = _size(figures["received_bytes"]), _size(figures["sent_bytes"])
    return f"{told} \N{MIDDLE DOT} {received} in, {sent} out"


# Words.


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("\N{MICRO SIGN}s", 1e-6)):
        if seconds >= size or unit.startswith("\N{MICRO SIGN}"):
            value = seconds / size
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f}\N{NO-BREAK SPACE}{unit}"
    raise AssertionError


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


# Pictures.


def _height(values: Sequence[float | None]) -> float:
    """What a picture of times reaches up to: one odd value must not press the rest flat."""
    measured = sorted(value for value in values if value is not None)
    return min(measured[-1], 3 * measured[len(measured) // 2]) if measured else 1.0


def _runs(values: Sequence[float | None], top: float) -> Iterator[list[tuple[float, float]]]:
    """Points without a gap; where nothing was measured there is none."""
    run: list[tuple[float, float]] = []
    for at, value in enumerate(values):
        if value is not None:
            height = min(1.0, value / top) * (HIGH - 2)
            run.append((at * WIDE / (len(values) - 1), HIGH - height))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _points(run: Sequence[tuple[float, float]]) -> str:
    # A single point would leave no mark.
    text = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
    return f"{text}h.1" if len(run) == 1 else text


def _line(values: Sequence[float | None], top: float) -> str:
    return "".join(f"M{_points(run)}" for run in _runs(values, top))


def _area(values: Sequence[float | None], top: float) -> str:
    return "".join(
        f"M{run[0][0]:.1f} {HIGH:g}L{_points(run)}V{HIGH:g}Z" for run in _runs(values, top)
    )


def _bars(values: Sequence[float], top: float | None) -> str:
    """Bars side by side; of those that stand for nothing there are none."""
    top = top or max(values, default=1.0)
    wide = WIDE / max(len(values), 1)
    if len(values) < 12:
        wide = min(wide, WIDE / 6)
    bars = [
        (at * wide, max(1.5, value / top * (HIGH - 2))) for at, value in enumerate(values) if value
    ]
    return "".join(f"M{x:.1f} {HIGH:g}v{-high:.1f}h{wide * 0.8:.1f}V{HIGH:g}Z" for x, high in bars)
