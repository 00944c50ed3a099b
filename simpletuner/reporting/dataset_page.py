"""A page that shows a dataset: every picture with the part that will be used, its bucket and its captions.

In: Surveys. Out: one HTML text that opens offline: no script, no request, every name and caption escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from simpletuner.data.survey import Look, Picture, Survey, data_url
from simpletuner.wording import counted

LONGEST = 400  # characters of a caption
GROUPS = 100  # of copies on the page
GROUP = 6  # copies of one picture
POOR = 20.0  # dB of reconstruction, an error of a tenth of the range from black to white
WHOLE = 0.995  # of a side: what is less is seen
SHOWN = 3000  # pictures on the page, each about 6 kB
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6676;--line:#d9dee6;--card:#fff;--back:#f5f6f8;--mark:#0a7cff;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf3;--soft:#9aa5b5;--line:#333c4a;--card:#1d232d;--back:#12161d;--mark:#5aa9ff;--warn:#f2b04b}}
*{box-sizing:border-box}body{margin:0;padding:24px;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1280px;margin:auto}h1{margin:0 0 4px;font-size:26px}h2{margin:36px 0 4px;font-size:20px}p{margin:4px 0}
.soft{color:var(--soft)}.warn{color:var(--warn)}table{border-collapse:collapse;margin:8px 0}td,th{padding:3px 14px 3px 0;text-align:left;
border-bottom:1px solid var(--line);font-weight:400;vertical-align:top;overflow-wrap:anywhere}th{color:var(--soft)}
.numbers{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}.numbers div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px 14px}
.numbers b{display:block;font-size:20px}.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(196px,1fr));gap:12px;margin:10px 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px;overflow:hidden}
.frame{position:relative;width:fit-content;margin:auto}.frame img{display:block;max-width:100%}
.frame i{position:absolute;outline:2px solid var(--mark);box-shadow:0 0 0 999px rgb(0 0 0/.45)}.clip{overflow:hidden;display:block;position:relative}
figcaption{font-size:12.5px;overflow-wrap:anywhere;margin-top:6px}summary{cursor:pointer;margin:10px 0 0}
"""


def page(title: str, surveys: Sequence[Survey], lines: Sequence[str], problems: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: Of the page.
        surveys: One a dataset.
        lines: Sentences about the run: steps per epoch, room on the disk.
        problems: Why training would refuse to start.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="soft">{escape(line)}</p>' for line in lines]
    body += [f'<p class="warn">{escape(problem)}</p>' for problem in problems]
    left = SHOWN
    for survey in surveys:
        body.append(_dataset(survey, left))
        left = max(0, left - len(survey.pictures))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _dataset(survey: Survey, room: int) -> str:
    copies, doubtful = survey.copies, survey.doubtful
    numbers = {
        "found": survey.found,
        "used": len(survey.pictures),
        "skipped": survey.found - len(survey.pictures),
    }
    told = {
        "other files": sum(not item.picture for item in survey.skipped),
        "enlarged": len(survey.enlarged),
        "empty captions": len(survey.without_caption),
        "captions cut": len(survey.cut_captions),
        "doubtful": len(doubtful),
        "copies": sum(map(len, copies.exact)),
        "near copies": sum(map(len, copies.near)),
    }
    numbers |= {name: value for name, value in told.items() if value}  # where all is well there is nothing to say
    boxes = "".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in numbers.items())
    rows = "".join(f"<tr><td>{b.size}</td><td>{b.count}</td><td>{b.enlarged}</td></tr>" for b in survey.buckets)
    parts = [
        f"<h2>{escape(survey.id)}</h2>",
        f'<p class="soft">{escape(str(survey.folder))} ({escape(survey.role)})</p>',
        f'<div class="numbers">{boxes}</div>',
        f"<table><tr><th>bucket</th><th>pictures</th><th>enlarged</th></tr>{rows}</table>",
        _legend(survey),
        _skipped(survey),
        _repeated(survey),
        _groups(
            survey, copies.exact, ("group of pictures with the same pixels", "groups of pictures with the same pixels")
        ),
        _groups(
            survey,
            copies.near,
            ("group of pictures that are nearly the same", "groups of pictures that are nearly the same"),
            "Look whether they are copies: of copies keep one. Other pictures of one place may stay.",
        ),
    ]
    for bucket in survey.buckets:
        pictures = [p for p in survey.pictures if p.bucket == bucket.size][: max(0, room)]
        room -= len(pictures)
        figures = "".join(_figure(p, survey.looks.get(p.path), doubtful.get(p.path, ())) for p in pictures)
        missing = f' <span class="soft">(first {len(pictures)} shown)</span>' if len(pictures) < bucket.count else ""
        head = f"<summary>{bucket.size}: {counted(bucket.count, 'picture')}{missing}</summary>"
        parts.append(f'<details open>{head}<div class="sheet">{figures}</div></details>')
    return "".join(parts)


def _legend(survey: Survey) -> str:
    """What the frames mean, where any lies inside of its picture."""
    if all(picture.crop[2] > WHOLE and picture.crop[3] > WHOLE for picture in survey.pictures):
        return ""
    return '<p class="soft">The frame in a picture holds what is used of it; what lies outside, darker, is cut off.</p>'


def _skipped(survey: Survey) -> str:
    if not survey.skipped:
        return ""
    rows = "".join(f"<tr><td>{_name(s.path)}</td><td>{escape(s.reason)}</td></tr>" for s in survey.skipped)
    head = f"<summary>{counted(len(survey.skipped), 'file is', 'files are')} not used</summary>"
    return f"<details open>{head}<table><tr><th>file</th><th>why</th></tr>{rows}</table></details>"


def _repeated(survey: Survey) -> str:
    rows = "".join(f"<tr><td>{escape(c)}</td><td>{count}</td></tr>" for c, count in survey.repeated_captions[:50])
    if not rows:
        return ""
    head = "<summary>captions that several pictures share</summary>"
    return f"<details>{head}<table><tr><th>caption</th><th>pictures</th></tr>{rows}</table></details>"


def _groups(survey: Survey, groups: Sequence[Sequence[Path]], what: tuple[str, str], remedy: str = "") -> str:
    """Copies side by side."""
    if not groups:
        return ""
    rows = ""
    for group in groups[:GROUPS]:
        images = "".join(
            f'<td><img alt="" src="{data_url(survey.looks[path].thumbnail)}"><br>{_name(path)}</td>'
            for path in group[:GROUP]
        )
        rows += f"<tr>{images}</tr>"
    told = f'<p class="soft">{escape(remedy)}</p>' if remedy else ""
    return f"<details><summary>{escape(counted(len(groups), *what))}</summary>{told}<table>{rows}</table></details>"


def _figure(picture: Picture, look: Look | None, doubts: Sequence[str]) -> str:
    left, top, width, height = (f"{100 * share:.2f}%" for share in picture.crop)
    image = ""
    if look and look.thumbnail:
        box = f"left:{left};top:{top};width:{width};height:{height}"
        image = (
            f'<div class="frame"><span class="clip"><img alt="" src="{data_url(look.thumbnail)}"><i style="{box}"></i>'
        )
        image += "</span></div>"
    captions = "".join(f"<p>{escape(_short(c)) or '<em>no caption</em>'}</p>" for c in picture.captions[:4])
    notes = list(doubts)
    if picture.enlarged > 1.01:
        notes.append(f"enlarged {picture.enlarged:.2f} times")
    if picture.cut:
        notes.append(f"not seen by the model: …{_short(picture.cut)}")
    reproduced = ""
    if picture.reconstruction is not None:
        kind = "warn" if picture.reconstruction < POOR else "soft"
        reproduced = f'<p class="{kind}">VAE reconstruction {picture.reconstruction:.1f} dB</p>'
    warned = "".join(f'<p class="warn">{escape(note)}</p>' for note in notes)
    place = f'<p class="soft">{_name(picture.path)}<br>{picture.size} → {picture.bucket}</p>'
    return f"<figure>{image}<figcaption>{captions}{place}{reproduced}{warned}</figcaption></figure>"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _name(path: object) -> str:
    """A file name as text: what is no Unicode is shown as an escape."""
    name = str(getattr(path, "name", path))
    return escape(name.encode("utf-8", "backslashreplace").decode("utf-8"))
