"""The report of an evaluation: one page with everything in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from workbench import lesson, page, tsne
from workbench.charts import COLORS, chart
from workbench.evaluation import RECALL_AT, Evaluation, sample
from workbench.index_comparison import TOP_K, Measured
from workbench.pictures import mosaic, thumbnail
from workbench.service_accuracy import ServiceAccuracy

QUERIES = 8
_NEIGHBOURS = 6
_CLASSES = 12  # best, and worst
_NAMED = 24  # classes with their names in the scatter
_PIXELS = 110
_TILE_PIXELS = 40

_STYLE = """
h2 { margin: 0 0 .35rem; font-size: 1.2rem; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; }
section { margin-bottom: 1.5rem; padding: 1.4rem 1.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; }
section > p { margin: 0 0 1rem; color: var(--soft); max-width: 56rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem;
  align-items: start; }
.wide { overflow-x: auto; }
.wide > svg { min-width: 38rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .87rem; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.25; }
th, td { padding: .32rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
td.text, th.text { text-align: left; }
td.settings { text-align: left; white-space: normal; min-width: 12rem; color: var(--soft); font-size: .8rem; }
td img { display: block; max-height: 4.6rem; max-width: 6.9rem; border-radius: 4px; }
svg g[id^="class-"] text { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.row { display: grid; grid-template-columns: repeat(7, minmax(5.4rem, 1fr)); gap: .8rem; margin-bottom: 1.2rem;
  min-width: 42rem; }
figure { margin: 0; min-width: 0; font-size: .78rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.frame { display: grid; place-items: center; aspect-ratio: 1; padding: .3rem; margin-bottom: .3rem; overflow: hidden;
  background: var(--ground); border: 2px solid var(--line); border-radius: 9px; }
.frame img { max-width: 100%; max-height: 100%; border-radius: 4px; display: block; }
.match .frame { border-color: var(--match); }
.other .frame { border-color: var(--other); }
.query .frame { border-style: dashed; }
figcaption b { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figcaption { color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 600; }
.twins { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1.1rem; }
.twins > div { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
.twins p { grid-column: 1 / -1; margin: 0; font-size: .78rem; color: var(--soft); overflow-wrap: anywhere; }
.twins b { color: var(--ink); }
.map { overflow: auto; max-height: 90vh; border-radius: 8px; }
.map img { display: block; width: 100%; }
.zoom { display: inline-block; margin-bottom: .7rem; cursor: pointer; }
.zoom:has(:checked) + .map img { width: auto; max-width: none; }
"""


def render(
    done: Evaluation,
    *,
    service: ServiceAccuracy,
    precision: str,
    model: str,
    seed: int,
    machine: str,
    on_progress: Callable[[], None] = lambda: None,
) -> str:
    """Returns the page as HTML.

    Args:
        done: what was measured of the vectors.
        service: what was measured through the services.
        precision: the arithmetic that the embedder was asked for.
        model: what the vectors are made with, in a few words.
        seed: of the choice of queries that are shown.
        machine: what it was measured on, in a few words.
        on_progress: called after each image of the map, of which there are as many as `done.layout.images`.
    """
    embedded = done.embedded
    stored = done.retrieval[-1]
    facts = {
        "accuracy through the services": f"{service.accuracy:.2%}",
        "accuracy of float32 vectors": f"{stored.accuracy:.2%}",
        "mAP": f"{stored.mean_average_precision:.3f}",
        "images": f"{len(embedded.files):,}",
        "classes": f"{len(embedded.names):,}",
        "model": model,
        "measured on": machine,
    }
    sections = (
        _dimensions(done),
        _retrieval(done, service, precision),
        _indexes(done.indexes),
        _map(done, on_progress),
        _queries(done, seed),
        _distances(done),
        _classes(done),
        _confusions(done),
        _duplicates(done),
        _times(done),
    )
    return page.render(
        "How good are the neighbours?",
        f"Of the {done.k - 1} nearest neighbours of an image, how many are of its class: measured on the folder of "
        "these images, beside the figures of the lesson that the project started from.",
        facts,
        "\n".join(sections),
        _STYLE,
    )


def _section(title: str, text: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{text}</p>\n{''.join(content)}\n</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text: frozenset[int] = frozenset()) -> str:
    """A table of HTML cells; `text` are the numbers of columns of words, which stand to the left."""
    head = "".join(
        f'<th class="text">{cell}</th>' if at in text else f"<th>{cell}</th>" for at, cell in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(_cell(at, cell, text) for at, cell in enumerate(row))}</tr>" for row in rows)
    return _wide(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")


def _cell(at: int, cell: str, text: frozenset[int]) -> str:
    return f'<td class="text">{cell}</td>' if at in text else f"<td>{cell}</td>"


def _wide(content: str) -> str:
    """What keeps its width on a narrow page, and is scrolled there."""
    return f'<div class="wide">{content}</div>'


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.2f}"


# ---- Dimensions


def _dimensions(done: Evaluation) -> str:
    full = done.retrieval[0]
    dims = [size.dims for size in done.pca]
    rows = [
        (
            str(size.dims),
            _percent(size.lesson),
            _percent(size.accuracy),
            _percent(size.accuracy_normalised),
            f"{size.explained_variance:.1%}",
            f"{size.fit_seconds:.2f}",
            f"{size.project_seconds:.3f}",
        )
        for size in done.pca
    ]
    rows.append((f"{full.dims:,}, no PCA", _percent(lesson.FULL_SIZE_PERCENT / 100), _percent(full.accuracy), *"––––"))
    header = ("dimensions", "lesson %", "here %", "here, length 1 %", "variance kept", "fit s", "project s")
    left_out = "".join(
        f"<p>Left out: {size} dimensions, as {escape(reason)}.</p>" for size, reason in done.pca_left_out.items()
    )
    charts = ""
    if done.pca:
        charts = f'<div class="pair">{_accuracy_chart(done, dims)}{_variance_chart(done, dims)}</div>'
    return _section(
        "Accuracy against dimensions",
        f"The lesson’s measure: the share of an image’s {done.k - 1} nearest others, by Euclidean distance, that have "
        "its class. PCA is fitted on these images anew for each size. “Length 1” divides the projections by their "
        "lengths, as the services do before they store a vector; in one dimension nothing but a sign would be left. "
        f"The lesson’s figures are of {escape(lesson.MODEL)}.",
        charts,
        _table(header, rows),
        left_out,
    )


def _accuracy_chart(done: Evaluation, dims: list[int]) -> str:
    with chart("Accuracy, %") as drawn:
        axes = drawn.axes
        axes.plot(dims, [size.lesson * 100 for size in done.pca], "o--", label="lesson, ResNet50", color=COLORS[7])
        axes.plot(dims, [size.accuracy * 100 for size in done.pca], "o-", label="here", color=COLORS[0])
        normalised = [
            (size.dims, size.accuracy_normalised * 100) for size in done.pca if size.accuracy_normalised is not None
        ]
        if normalised:
            axes.plot(*zip(*normalised, strict=True), "o-", label="here, length 1", color=COLORS[1])
        _log_dimensions(axes, dims)
        axes.set_ylim(0, 100)
        axes.legend(loc="lower right")
    return drawn.svg


def _variance_chart(done: Evaluation, dims: list[int]) -> str:
    with chart("Variance kept, %") as drawn:
        drawn.axes.plot(dims, [size.explained_variance * 100 for size in done.pca], "o-", color=COLORS[2])
        _log_dimensions(drawn.axes, dims)
        drawn.axes.set_ylim(0, 100)
    return drawn.svg


def _log_dimensions(axes: Axes, dims: list[int]) -> None:
    shown = [size for size in dims if size not in (4, 75, 150)]  # those would run into their neighbours
    axes.set_xscale("log")
    axes.set_xticks(shown, [str(size) for size in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("dimensions after PCA")


# ---- Retrieval


def _retrieval(done: Evaluation, service: ServiceAccuracy, precision: str) -> str:
    rows = [
        (
            f"{each.vectors}, {each.dims:,} dimensions",
            _percent(each.accuracy),
            f"{each.mean_average_precision:.4f}",
            *(_percent(each.recall_at[at]) for at in RECALL_AT),
        )
        for each in done.retrieval
    ]
    through = f"through the services, precision {escape(precision)}"
    rows.append((through, _percent(service.accuracy), *("–" for _ in range(1 + len(RECALL_AT)))))
    header = ("vectors", "accuracy %", "mAP", *(f"recall@{at} %" for at in RECALL_AT))
    return _section(
        "Measures of retrieval",
        "mAP: the mean, over all images, of the average precision of the ranking of all others. recall@k: the share of "
        "images with one of their class among the k nearest. Through the services: every image was stored by its bytes "
        f"and searched by its id, {service.images / service.seconds:,.0f} searches/s at {service.concurrency} at a "
        f"time, {service.latency_ms['p50']:.1f} ms each (median).",
        _table(header, rows),
    )


# ---- Indexes


def _indexes(indexes: Sequence[Measured]) -> str:
    rows = []
    for each in indexes:
        name = f"{escape(each.name)}{f', {each.dims:,} dimensions' if each is indexes[0] else ''}"
        numbers = (
            f"{_us(each.lesson_us)}",
            f"{_us(each.query_us)}",
            "–" if each.recall is None else f"{each.recall:.4f}",
            "–" if each.batch_per_second is None else f"{each.batch_per_second:,.0f}",
            "–" if each.batch_threads is None else str(each.batch_threads),
            "–" if each.build_seconds is None else f"{each.build_seconds:.3f}",
            "–" if each.bytes is None else f"{each.bytes / 1e6:.2f}",
        )
        cells = f'<td>{name}</td><td class="settings">{escape(each.settings)}</td>'
        cells += "".join(f"<td>{number}</td>" for number in numbers)
        rows.append(f"<tr>{cells}</tr>")
    told = (
        ("lesson: brute force, 2,048 dimensions", lesson.BRUTE_FORCE_FULL_US, None),
        ("lesson: brute force, 150 dimensions", lesson.BRUTE_FORCE_PCA_US, None),
        ("lesson: Annoy, 40 trees", lesson.ANNOY_US, lesson.ANNOY_BUILD_SECONDS),
    )
    for name, us, build in told:
        built = "–" if build is None else f"{build:.3f}"
        rows.append(
            f'<tr><td>{name}</td><td class="settings">on another machine</td><td>{_us(us)}</td>'
            f"<td>–</td><td>–</td><td>–</td><td>–</td><td>{built}</td><td>–</td></tr>"
        )
    header = (
        *("way to search", "settings", "5 neighbours µs", f"{TOP_K} neighbours µs", f"recall@{TOP_K}"),
        *("batch queries/s", "threads", "build s", "MB"),
    )
    head = "".join(f'<th class="text">{cell}</th>' if cell == "settings" else f"<th>{cell}</th>" for cell in header)
    body = "\n".join(rows)
    table = _wide(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")
    return _section(
        "Ways to search",
        "All on the same vectors in one run. Microseconds are those of one query on one thread, seen by the caller, "
        "the median, the least of five rounds: for a library that of its call, with the query in the form that it "
        "takes; for Lookalike that of a gRPC call through the search service to Milvus Lite, in another process that "
        "may use all cores, with the ids, attributes and sources of the hits. Many queries at once use as many threads "
        "as are stated (Annoy has no such call). Recall is against the exact neighbours by the same vectors. MB are "
        "those of the index when it is stored; of Lookalike an estimate of the memory for vectors and index.",
        _wide(_latency_chart(indexes)),
        table,
    )


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _latency_chart(indexes: Sequence[Measured]) -> str:
    markers, colors = "osD^vP*Xh", (*COLORS, "#7a5cc9")
    with chart(f"Recall@{TOP_K} against the time of one query", width=9.6, height=3.8) as drawn:
        axes = drawn.axes
        for at, each in enumerate(indexes):
            if each.query_us is None or each.recall is None:
                continue
            name = f"{each.name}, {each.dims:,} dimensions" if at == 0 else each.name
            axes.scatter(
                each.query_us,
                each.recall,
                s=75,
                marker=markers[at],
                color=colors[at],
                label=name,
                zorder=3,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"µs of one query for {TOP_K} neighbours (logarithmic)")
        low = min((each.recall for each in indexes if each.recall is not None), default=0.9)
        axes.set_ylim(low - 0.05 * (1.05 - low) - 0.01, 1 + 0.06 * (1.05 - low))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return drawn.svg


# ---- The map


def _map(done: Evaluation, on_progress: Callable[[], None]) -> str:
    layout, files = done.layout, done.embedded.files
    cells, side = tsne.grid(layout.points)
    picture = mosaic(
        [files[number].path for number in layout.images],
        cells,
        side,
        _TILE_PIXELS,
        "the images, those that look alike beside each other",
        on_progress,
    )
    return _section(
        "A map of the images",
        f"t-SNE of {len(layout.images):,} of the vectors: images that are near each other in many dimensions are near "
        "each other here. What distance there is between far groups means nothing. Below, each image is moved to the "
        "nearest free place of a grid.",
        _wide(_scatter(done)),
        '<label class="zoom"><input type="checkbox"> full size</label>',
        f'<div class="map">{picture}</div>',
    )


def _scatter(done: Evaluation) -> str:
    layout = done.layout
    points, of = layout.points, done.embedded.classes[layout.images]
    hues = np.arange(len(done.embedded.names)) / len(done.embedded.names)
    colors = hsv_to_rgb(np.column_stack([hues, np.full_like(hues, 0.72), np.full_like(hues, 0.88)]))
    # Neighbours in the alphabet are often neighbours here: their colours are not to be.
    colors = colors[np.argsort(np.arange(len(colors)) * 0.618034 % 1)]
    with chart("By class", width=12, height=8) as drawn:
        axes = drawn.axes
        axes.scatter(points[:, 0], points[:, 1], s=7, color=colors[of], linewidths=0)
        counts = np.bincount(of, minlength=len(colors))
        placed: list[np.ndarray] = []
        extent = np.maximum(np.ptp(points, axis=0), 1e-9)
        for number in np.argsort(-counts, kind="stable"):
            if len(placed) == _NAMED or counts[number] == 0:
                break
            # The point in the midst of its class; a mean could lie between two groups of it.
            own = points[of == number]
            middle = own[np.argmin(np.linalg.norm(own - np.median(own, axis=0), axis=1))]
            if all((np.abs(middle - other) / extent > (0.13, 0.03)).any() for other in placed):
                placed.append(middle)
                axes.annotate(
                    done.embedded.names[number],
                    middle,
                    ha="center",
                    va="center",
                    fontsize=9,
                    fontweight="bold",
                    gid=f"class-{number}",  # the style of the page gives it a rim
                )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return drawn.svg


# ---- Queries and distances


def _queries(done: Evaluation, seed: int) -> str:
    embedded, neighbours = done.embedded, done.neighbours
    rows = []
    for number in sample(len(embedded.files), QUERIES, seed):
        label = embedded.files[number].label
        figures = [_figure("query", embedded.files[number].path, label, "query")]
        for id, distance in zip(
            neighbours.ids[number, :_NEIGHBOURS], neighbours.distances[number, :_NEIGHBOURS], strict=True
        ):
            other = embedded.files[id]
            kind, mark = ("match", "✓") if other.label == label else ("other", "✗")
            figures.append(_figure(kind, other.path, other.label, f"{mark} distance {distance:.3f}"))
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    return _section(
        "Neighbours of random images",
        f"Each row: an image chosen at random (seed {seed}) and its nearest others, with their Euclidean distances; "
        "framed by whether they have its class.",
        _wide("".join(rows)),
    )


def _figure(kind: str, path: Path, label: str, text: str) -> str:
    picture = thumbnail(path, label, _PIXELS)
    return (
        f'<figure class="{kind}"><div class="frame">{picture}</div>'
        f'<figcaption><b title="{escape(label)}">{escape(label)}</b>{text}</figcaption></figure>'
    )


def _distances(done: Evaluation) -> str:
    count = done.k - 1
    distances = done.neighbours.distances[:, :count]
    right = done.embedded.classes[done.neighbours.ids[:, :count]] == done.embedded.classes[:, None]
    median, most = float(np.median(distances)), float(distances.max())
    with chart(f"Distances of the {count} nearest neighbours", width=9.6, height=3.4) as drawn:
        axes = drawn.axes
        axes.hist(
            [distances[right], distances[~right]],
            bins=60,
            range=(0, max(most, 1e-6)),
            stacked=True,
            color=[COLORS[2], COLORS[1]],
            label=["same class", "another class"],
        )
        axes.axvline(median, color=rcParams["text.color"], linestyle="--", linewidth=1.4, label=f"median {median:.3f}")
        axes.axvline(most, color=COLORS[6], linestyle="--", linewidth=1.4, label=f"maximum {most:.3f}")
        axes.set_xlabel("Euclidean distance")
        axes.set_ylabel("neighbours")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _section(
        "How far the neighbours are",
        f"Median distance {median:.3f}, maximum {most:.3f}, of {distances.size:,} neighbours. Vectors have length 1, "
        "so a distance is at most 2; that of two images that have nothing in common is about 1.41.",
        _wide(drawn.svg),
    )


# ---- Classes


def _classes(done: Evaluation) -> str:
    ordered = sorted(done.class_accuracy.items(), key=lambda each: (-each[1], each[0]))
    if len(ordered) <= 2 * _CLASSES:
        charts = _bars("All classes", ordered, COLORS[0])
    else:
        charts = _bars("The best", ordered[:_CLASSES], COLORS[2]) + _bars(
            "The worst", ordered[: -_CLASSES - 1 : -1], COLORS[1]
        )
    return _section(
        "The best and the worst classes",
        "The accuracy of the images of each class, in percent.",
        f'<div class="pair">{charts}</div>',
    )


def _bars(title: str, classes: Sequence[tuple[str, float]], color: str) -> str:
    with chart(title, height=0.9 + 0.27 * len(classes)) as drawn:
        axes = drawn.axes
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name, _ in classes]
        values = [share * 100 for _, share in classes]
        bars = axes.barh(range(len(names)), values, color=color, height=0.68)
        axes.set_yticks(range(len(names)), names)
        axes.bar_label(bars, labels=[f"{value:.1f}" for value in values], padding=4, fontsize=9)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
    return drawn.svg


def _confusions(done: Evaluation) -> str:
    embedded = done.embedded
    rows = []
    for each in done.confusions:
        image, neighbour = embedded.files[each.image], embedded.files[each.neighbour]
        rows.append(
            (
                escape(embedded.names[each.of]),
                thumbnail(image.path, image.id, _PIXELS),
                escape(embedded.names[each.found]),
                thumbnail(neighbour.path, neighbour.id, _PIXELS),
                _percent(each.share),
            )
        )
    content = _table(
        ("class", "such as", "taken for", "such as", "% of its neighbours"), rows, text=frozenset({1, 2, 3})
    )
    return _section(
        "The most confused pairs",
        f"Of the {done.k - 1} nearest neighbours of the images of a class, the share of those that have one other "
        "class; the pictures are the nearest such pair.",
        content if rows else "<p>No image has a neighbour of another class.</p>",
    )


def _duplicates(done: Evaluation) -> str:
    files, found = done.embedded.files, done.duplicates
    pairs = []
    for first, second, similarity in found.pairs:
        one, other = files[first], files[second]
        pictures = "".join(
            f'<div class="frame">{thumbnail(file.path, file.id, _PIXELS)}</div>' for file in (one, other)
        )
        names = f"{_id(one.id)}<br>{_id(other.id)}"
        pairs.append(f"<div>{pictures}<p><b>similarity {similarity:.4f}</b><br>{names}</p></div>")
    return _section(
        "Near-duplicates in the data",
        f"{found.count:,} pairs of images have a cosine similarity of {done.least_similarity} or more"
        f"{f'; the {len(pairs)} most similar' if found.count > len(pairs) else ''}. Each is a neighbour that is easily "
        "right, and perhaps an image too many.",
        f'<div class="twins">{"".join(pairs)}</div>' if pairs else "",
    )


def _id(id: str) -> str:
    return escape(id).replace("/", "/<wbr>")


def _times(done: Evaluation) -> str:
    names: Mapping[str, str] = {
        "features": "features of all images",
        "pca": "PCA at all sizes, with accuracies",
        "measures": "neighbours, mAP, duplicates",
        "indexes": "comparison of indexes",
        "t_sne": "t-SNE",
        "services": "storing and searching through the services",
    }
    rows = [(names[stage], f"{seconds:,.1f}") for stage, seconds in done.seconds.items()]
    count = len(done.embedded.files) + len(done.embedded.skipped)
    rate = count / done.embedded.seconds
    return _section(
        "Where the time went",
        f"Features came at {rate:,.0f} images/s, {1000 / rate:,.1f} ms an image; the lesson took "
        f"{lesson.FEATURES_OF_AN_IMAGE_MS} ms an image, {lesson.FEATURES_MINUTES} minutes in all.",
        _table(("stage", "seconds"), rows),
    )
