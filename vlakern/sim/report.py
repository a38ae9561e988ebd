"""A rollout as one static page: tables, and every episode's video with its outcome."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vlakern.errors import InputError
from vlakern.sim.rollout import EpisodeResult, Plan, RolloutResult, TaskResult

__all__ = ["PAGE", "check_folder", "keep_video", "page", "write_page", "write_video"]

PAGE = "report.html"
SIGNATURE = '<meta name="generator" content="vlakern rollout">'
# Policies see small pictures; people and chroma subsampling want larger ones [px].
SHORT_SIDE = 192
HOLD_S = 0.6
# Without mbtree, as in vlakern.data.video, so that equal runs write equal bytes.
_ENCODER = {"crf": "22", "mbtree": "0"}


def check_folder(folder: Path) -> None:
    """Refuses a folder that exists, is not empty and was not written by a rollout.

    Raises:
        InputError: ``folder`` is a file or holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a directory for the report")
    report = folder / PAGE
    if report.is_file() and SIGNATURE.encode() in report.read_bytes()[:1024]:
        return
    if any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no earlier rollout report; name another directory"
        )


def keep_video(
    folder: Path, plan: Plan, row: EpisodeResult, frames: Sequence[np.ndarray]
) -> EpisodeResult:
    """Writes an episode's frames as ``videos/*.mp4`` with a poster; returns the row naming it."""
    if not frames:
        return row
    name = f"videos/{re.sub(r'[^A-Za-z0-9._-]', '_', row.task)}-{row.episode:04d}.mp4"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    write_video(path, frames, plan.frame_rate)
    return replace(row, video=name)


def write_video(path: Path, frames: Sequence[np.ndarray], rate: float) -> None:
    """Writes H.264 (yuv420p, for browsers) and a JPEG of the last frame beside it.

    Args:
        path: the ``.mp4`` file; the poster takes its name with ``.jpg``.
        frames: uint8 ``[H, W, 3]`` RGB, all of one size.
        rate: frames per second [Hz].
    """
    import av
    from av.video.frame import VideoFrame

    height, width = frames[0].shape[:2]
    scale = max(1.0, SHORT_SIDE / height)
    # 4:2:0 subsampling needs even sides.
    size = {"width": round(width * scale / 2) * 2, "height": round(height * scale / 2) * 2}
    held = [*frames, *[frames[-1]] * round(HOLD_S * rate)]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as video:
        stream = video.add_stream("libx264", rate=max(1, round(rate)), options=_ENCODER)
        stream.width, stream.height, stream.pix_fmt = size["width"], size["height"], "yuv420p"
        # One thread leaves the cores to the simulator.
        stream.codec_context.thread_count = 1
        for pixels in held:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            small = frame.reformat(**size, format="yuv420p", interpolation="BICUBIC")
            video.mux(stream.encode(small))
        video.mux(stream.encode())
    _write_poster(path.with_suffix(".jpg"), frames[-1], size)


def write_page(folder: Path, result: RolloutResult, settings: Mapping[str, str]) -> None:
    """Writes ``report.html`` into ``folder``, beside the videos."""
    (folder / PAGE).write_text(page(result, settings), encoding="utf-8")


def page(result: RolloutResult, settings: Mapping[str, str]) -> str:
    """The whole page as one string without external resources.

    Args:
        result: the finished rollout; video paths are relative to the page.
        settings: what to say about the run (device, dtype, versions), name -> value.
    """
    title = f"Rollout of {result.policy}"
    facts = " · ".join(f"{escape(key)} {escape(value)}" for key, value in settings.items())
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            SIGNATURE,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>{escape(title)}</h1><p class=quiet>{facts}</p></header><main>",
            _cards(result),
            '<div class="tables">',
            _task_table(result),
            _latency_table(result),
            "</div>",
            _grid(result),
            f"</main><script>{_SCRIPT}</script></body></html>",
            "",
        ]
    )


def _write_poster(path: Path, pixels: np.ndarray, size: Mapping[str, int]) -> None:
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    codec = CodecContext.create("mjpeg", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = size["width"], size["height"], "yuvj420p"
    codec.time_base = Fraction(1)
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    packets = [*codec.encode(frame.reformat(**size, format="yuvj420p")), *codec.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def _percent(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f}\u00a0%"


def _cards(result: RolloutResult) -> str:
    steps = sum(row.steps for row in result.episodes)
    total = result.latency_ms.get("total")
    cards = [
        (
            "Mean success",
            _percent(result.mean_success),
            f"95\u00a0% interval <span>{_range(result.wilson95)}</span>",
        ),
        ("Episodes", f"{result.successes} / {len(result.episodes)}", "reached the goal"),
        (
            "Time to a chunk",
            f"{total['p50']:.0f} ms" if total else "not measured",
            f"median of {len(result.calls) - 1} calls, mean batch {result.mean_batch:.1f}",
        ),
        ("Wall time", f"{result.seconds:.0f} s", f"{steps:,} control steps"),
    ]
    return (
        '<section class="cards">'
        + "".join(
            f"<div class=card><span>{name}</span><b>{value}</b><small>{note}</small></div>"
            for name, value, note in cards
        )
        + "</section>"
    )


def _task_row(name: str, successes: int, episodes: int, interval: tuple[float, float]) -> str:
    low, high = (100 * bound for bound in interval)
    rate = 100 * successes / episodes
    bar = (
        f'<div class="bar" role="img" aria-label="{rate:.0f} %, 95 % interval {_range(interval)}">'
        f'<i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{rate:.2f}%"></b></div>'
    )
    return (
        f"<tr><th scope=row>{escape(name)}</th><td>{successes}/{episodes}</td>"
        f"<td>{rate:.0f}\u00a0%</td><td>{_range(interval)}</td><td class=wide>{bar}</td></tr>"
    )


def _task_table(result: RolloutResult) -> str:
    def row(task: TaskResult) -> str:
        return _task_row(task.task, task.successes, task.episodes, task.wilson95)

    mean = _task_row("mean", result.successes, len(result.episodes), result.wilson95)
    return (
        "<section><h2>Success</h2><div class=scroll><table><thead><tr><th>Task<th>Done<th>Rate"
        "<th>95\u00a0% interval<th class=wide>0 – 100\u00a0%</tr></thead><tbody>"
        + "".join(map(row, result.tasks))
        + f"</tbody><tfoot>{mean}</tfoot></table></div></section>"
    )


def _latency_table(result: RolloutResult) -> str:
    def row(stage: str, value: Mapping[str, float]) -> str:
        columns = [value[key] for key in ("p50", "p95", "p99", "max")]
        cells = "".join(f"<td>{ms:.1f}</td>" for ms in (*columns, value["p99"] - value["p50"]))
        return f"<tr><th scope=row>{escape(stage)}</th>{cells}</tr>"

    rows = "".join(row(stage, value) for stage, value in result.latency_ms.items())
    cold = result.cold_start_ms.get("total")
    first = f"{cold:.1f} ms" if cold is not None else "not measured"
    return (
        "<section><h2>Latency of a policy call [ms]</h2><div class=scroll><table><thead><tr>"
        "<th>Stage<th>p50<th>p95<th>p99<th>max<th>p99−p50</tr></thead>"
        f"<tbody>{rows or _NO_CALLS}</tbody></table>"
        f"</div><p class=quiet>First call, not in the table: {first}. A call serves up to "
        f"{result.plan.batch} episodes at once.</p></section>"
    )


def _grid(result: RolloutResult) -> str:
    tasks = "".join(
        f'<option value="{escape(task)}">{escape(task)}</option>' for task in result.plan.tasks
    )
    return (
        "<section><h2>Episodes</h2><div class=filter>"
        '<select id="outcome" aria-label="outcome"><option value="">all outcomes</option>'
        '<option value="success">success</option><option value="failure">failure</option></select>'
        f'<select id="task" aria-label="task"><option value="">all tasks</option>{tasks}</select>'
        '<button id="play" type="button">Play all</button>'
        '<span id="count" class=quiet></span></div>'
        f'<div class="grid">{"".join(map(_tile, result.episodes))}</div></section>'
    )


def _tile(row: EpisodeResult) -> str:
    outcome = "success" if row.success else "failure"
    mark = "✓" if row.success else "✕"
    return (
        f'<figure class="{outcome}" data-outcome="{outcome}" data-task="{escape(row.task)}">'
        f"{_player(row)}<figcaption><b>{escape(row.task)}</b>"
        f"<span class=mark>{mark} {outcome}</span>"
        f"<small>seed\u00a0{row.seed} · {row.steps}\u00a0steps · {row.seconds:.1f}\u00a0s</small>"
        "</figcaption></figure>"
    )


def _player(row: EpisodeResult) -> str:
    if row.video is None:
        return "<div class=none>not recorded</div>"
    source, poster = (
        escape(quote(row.video)),
        escape(quote(row.video.removesuffix(".mp4") + ".jpg")),
    )
    return (
        '<div class="view"><video muted loop controls playsinline preload="none" '
        f'poster="{poster}">'
        f'<source src="{source}" type="video/mp4"></video></div>'
    )


_NO_CALLS = "<tr><td colspan=6>not measured: one call only</td></tr>"

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--box:#fff;--ink:#1b1f24;--quiet:#667080;
--line:#e3e6ea;--good:#1a9e5c;--bad:#d6453d;--mark:#3567d6}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--box:#1d2127;--ink:#e8ebef;
--quiet:#98a2b0;--line:#2e343c;--good:#3fc380;--bad:#f0716a;--mark:#7da2f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main{max-width:1240px;margin:auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 10px}
.quiet{color:var(--quiet);font-size:13px;margin:6px 0 0;overflow-wrap:anywhere}
section{margin:20px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.card,.tables section,figure{background:var(--box);border:1px solid var(--line);border-radius:12px}
.card{padding:14px 16px;display:flex;flex-direction:column}
.card span,.card small,figcaption small{color:var(--quiet);font-size:13px}
.card small span{white-space:nowrap}
.card b{font-size:26px;line-height:1.3;font-weight:650}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:12px}
.tables section{margin:0;padding:16px;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
th:last-child,td:last-child{padding-right:0}
thead th{border:0;color:var(--quiet);font-weight:500;font-size:13px}
th:first-child{text-align:left;font-weight:500;padding-left:0}
tfoot th:first-child,tfoot td{font-weight:650}
td.wide{width:34%;min-width:90px}
.bar{position:relative;height:14px;border-radius:7px;background:var(--line)}
.bar i{position:absolute;top:4px;height:6px;border-radius:3px;background:var(--mark);opacity:.5}
.bar b{position:absolute;top:1px;width:4px;height:12px;margin-left:-2px;border-radius:2px;
background:var(--mark)}
.filter{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin-bottom:12px}
.filter .quiet{margin:0}
select,button{font:inherit;color:inherit;background:var(--box);border:1px solid var(--line);
border-radius:8px;padding:6px 10px;min-height:38px;max-width:190px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px}
figure{margin:0;overflow:hidden;border-width:2px}
figure[hidden]{display:none}
.success{border-color:var(--good)}.failure{border-color:var(--bad)}
.success .mark{color:var(--good)}.failure .mark{color:var(--bad)}
video,.none{display:block;width:100%;background:#000}
.none{padding:48px 0;text-align:center;background:var(--line);color:var(--quiet)}
figcaption{padding:8px 10px;display:flex;flex-direction:column;line-height:1.4}
figcaption b{overflow-wrap:anywhere;font-weight:600}
.view{position:relative;cursor:pointer}
.view:focus-visible{outline:3px solid var(--mark);outline-offset:-3px}
.view.still::after{content:"";position:absolute;right:10px;bottom:10px;width:30px;height:30px;
border-radius:15px;pointer-events:none;background:#000a conic-gradient(at 66% 50%,#0000 240deg,
#fff 240deg 300deg,#0000 300deg) 8px 8px/14px 14px no-repeat}
@media(max-width:560px){.cards{grid-template-columns:1fr 1fr}.card b{font-size:21px}
.grid{grid-template-columns:1fr 1fr}header,main{padding-left:12px;padding-right:12px}
td.wide,th.wide{display:none}th,td{padding:6px 4px;font-size:13px}
th:first-child{white-space:normal}figcaption{padding:6px 8px}}
"""

# The controls hide a small picture, so with scripts a tap on the picture replaces them.
_SCRIPT = """
const tiles=[...document.querySelectorAll("figure")];
const outcome=document.getElementById("outcome"),task=document.getElementById("task");
const button=document.getElementById("play"),count=document.getElementById("count");
let playing=false;
function set(video,on){if(on)video.play().catch(()=>{});else video.pause();}
for(const video of document.querySelectorAll("video")){
  const view=video.parentElement,toggle=()=>set(video,video.paused);
  video.controls=false;
  view.tabIndex=0;
  view.setAttribute("role","button");
  view.setAttribute("aria-label","play or pause");
  view.classList.add("still");
  video.onplay=()=>view.classList.remove("still");
  video.onpause=()=>view.classList.add("still");
  view.onclick=toggle;
  view.onkeydown=event=>{
    if(event.key===" "||event.key==="Enter"){event.preventDefault();toggle();}
  };
}
function update(){
  for(const tile of tiles){
    tile.hidden=Boolean((outcome.value&&tile.dataset.outcome!==outcome.value)
      ||(task.value&&tile.dataset.task!==task.value));
    const video=tile.querySelector("video");
    if(video)set(video,playing&&!tile.hidden);
  }
  count.textContent=tiles.filter(tile=>!tile.hidden).length+" of "+tiles.length+" episodes";
  button.textContent=playing?"Pause all":"Play all";
}
outcome.onchange=task.onchange=update;
button.onclick=()=>{playing=!playing;update();};
update();
"""
