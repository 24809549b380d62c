"""Pages hold what was measured, under its full name, and need nothing outside their own file."""

from __future__ import annotations

import base64
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sgc_distiller.charts import COLOURS, Line, line_chart
from sgc_distiller.curves import run_charts
from sgc_distiller.errors import UserError
from sgc_distiller.pictures import save_comparison, save_grid
from sgc_distiller.report import write_report, write_summary
from sgc_distiller.runs import RunFolder

FID = "FID[digits-1a2b3c4d; reference digits-all1797; 200 images, train mode, batch 64]"
KID = "KID[digits-1a2b3c4d; reference digits-all1797; 200 images, train mode, batch 64]"
OTHER = "FID[inception; reference digits-all1797; 200 images, train mode, batch 64]"
SCHEDULE = "version: 1\n# <b>75 %</b> & more, see https://example.org/x\n"
VOID = {"meta", "link", "img", "br", "use", "path", "hr"}


def result(method: str = "pruned", fid: float = 92.61, **changes) -> dict:
    record = {
        "kind": "result",
        "task": "dcgan",
        "method": method,
        "sparsity_asked": 0.75,
        "sparsity": 0.7485,
        "metrics": [
            {"name": FID, "value": fid, "low": None, "high": None},
            {"name": KID, "value": 0.0545, "low": 0.0501, "high": 0.0579},
        ],
        "seed": 3,
        "seconds": 92.1,
        "steps": 840,
        "checkpoint": "/somewhere/best.pth.tar",
        "nonzero": 251_500,
        "weights": 1_000_000,
    }
    return {**record, **changes}


def dense_result(**changes) -> dict:
    own = {"sparsity_asked": 0.0, "sparsity": 0.0, "nonzero": 1_000_000, "steps": 0}
    return result("dense", 69.24, **{**own, **changes})


def digits(count: int) -> torch.Tensor:
    return torch.tensor(load_digits().images[:count, None] / 8.0 - 1.0, dtype=torch.float32)


def fill(path: Path, epochs: int = 3, steps_per_epoch: int = 4) -> RunFolder:
    """Write a run folder as a supervised compression leaves it, without its results."""
    with RunFolder(path) as run:
        run.write_config(
            {
                "task": "dcgan",
                "method": "pruned",
                "schedule": "x/pruned_75.yaml",
                "epochs": 20,
                "steps_per_epoch": 42,
            }
        )
        run.write_schedule(SCHEDULE)
        run.write_environment("cpu")
        for epoch in range(epochs):
            for step in range(epoch * steps_per_epoch + 1, (epoch + 1) * steps_per_epoch + 1):
                terms = {
                    "student.gen": 1.5,
                    "teacher.gen": 1.25,
                    "discriminator.dis": 0.5,
                    "sup.total": 1 / step,
                }
                terms["sup.gc.gen"] = 0.2
                terms["generator.loss"] = 1 / step
                run.log({"kind": "step", "epoch": epoch, "step": step, "terms": terms, "seconds": 0.1})
            share = 0.25 * (epoch + 1)
            metrics = [{"name": FID, "value": 90.0 - epoch, "low": 80.0, "high": 95.0}]
            epoch_record = {"sparsity_asked": share, "sparsity": share, "metrics": metrics, "seconds": 2.0}
            run.log({"kind": "epoch", "epoch": epoch, "step": step, **epoch_record})
            layer = {"name": "main.0.weight", "shape": [100, 64, 4, 4], "dense": 102_400, "nonzero": 25_600}
            run.log({"kind": "layers", "step": step, "layers": [{**layer, "sparsity": 0.75, "asked": 0.75}]})
            save_grid(digits(4), run.epoch_sample(epoch), columns=4)
        save_comparison(digits(4), -digits(4), run.samples)
    return run


class Page(HTMLParser):
    """Collects what a page loads or points at, its text, and whether every tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(v) for k, v in attrs if k in {"src", "href", "xlink:href", "action", "data"}]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def read(path: Path) -> tuple[str, Page]:
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == [], "every tag is closed"
    return source, page


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = fill(tmp_path_factory.mktemp("finished"))
    with run:
        run.log(dense_result())
        run.log(result())
    return write_report(run.path)


def test_the_report_needs_no_other_file_and_no_network(finished):
    source, page = read(finished)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<iframe", source)
    assert "://" not in source.replace(html.escape(SCHEDULE), ""), "no address but the schedule's own text"


def test_the_headline_sets_dense_against_sparse_under_the_full_name(finished):
    _, page = read(finished)
    assert "dcgan, 74.85 % sparse, pruned" in page.text
    assert "keeps 251,500 of 1,000,000 weights" in page.text
    # 92.61 / 69.24 = 1.3375
    assert re.search(r"FID \(lower is better\) 69\.24 dense 92\.61 sparse × 1\.34 sparse / dense", page.text)
    assert FID in page.text
    assert "0.0501 to 0.0579" in page.text


def test_facts_of_the_run_are_listed(finished):
    _, page = read(finished)
    for fact in (
        "schedule pruned_75.yaml",
        "sparsity asked 75 %",
        "seed 3",
        "steps (generator updates) 840 in 20 epochs",
        "time 1 min 32 s",
        "checkpoint best.pth.tar",
        f"torch {torch.__version__}",
    ):
        assert fact in page.text


def test_the_pictures_are_the_files(finished):
    source, page = read(finished)
    names = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', source)
    panels = {alt: base64.b64decode(data) for data, alt in names}
    assert list(panels)[:4] == ["dense", "sparse", "residual", "residual × 10"]
    samples = finished.parent / "samples"
    assert panels["dense"] == (samples / "dense.png").read_bytes()
    assert panels["residual × 10"] == (samples / "residual_x10.png").read_bytes()
    assert panels["pictures after epoch 2"] == (samples / "epoch_002.png").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(panels["sparse"]))).shape[0] == 8 * 16


def test_charts_layers_and_texts_are_there(finished):
    source, page = read(finished)
    assert source.count("<svg") == 5  # sparsity, FID, gen, dis, sup; the generator's loss is sup's total
    for words in (
        "dense (teacher)",
        "sparse (student)",
        "reached",
        "asked",
        "main.0.weight",
        "100 × 64 × 4 × 4",
    ):
        assert words in page.text
    assert html.escape(SCHEDULE, quote=False) in source.replace("&#34;", '"')
    assert "<b>75 %</b>" not in source, "text is escaped"
    assert len(page.ids) == len(set(page.ids))


def test_each_chart_shows_something_of_its_own():
    def titles(loss: float) -> list[str]:
        terms = {"student.gen": 1.5, "discriminator.dis": 0.5, "kd.l1": 0.25, "generator.loss": loss}
        steps = [{"kind": "step", "step": step, "terms": terms} for step in (1, 2)]
        return [chart["title"] for section in run_charts(steps, None) for chart in section["charts"]]

    assert titles(1.5000001) == ["gen: generator", "dis: discriminator", "kd: l1"]
    assert titles(1.75) == ["gen: generator", "dis: discriminator", "kd: l1", "generator's loss"]


def test_values_of_different_size_are_all_seen():
    def chart(small: float) -> dict[str, str]:
        terms = {"sup.total": 9.0, "sup.gc.gen": small}
        steps = [{"kind": "step", "step": step, "terms": terms} for step in (1, 2)]
        return run_charts(steps, None)[0]["charts"][0]

    assert chart(1.0)["text"] == ""
    assert chart(0.0)["text"] == "", "0 has no logarithm"
    assert chart(0.05)["text"] == "logarithmic axis"
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", chart(0.05)["svg"])
    assert "0.1" in ticks
    assert not any("$" in tick for tick in ticks), "no TeX on the page"


def test_an_unfinished_run_says_so(tmp_path):
    _, page = read(write_report(fill(tmp_path, epochs=2).path))
    assert "This run has not finished: 2 of 20 epochs are recorded here" in page.text
    assert "is better" not in page.text


def test_an_empty_run_gives_a_page(tmp_path):
    _, page = read(write_report(RunFolder(tmp_path).path))
    assert "This run has not finished: 0 epochs" in page.text


def test_a_dense_run_has_no_sparse_side(tmp_path):
    with RunFolder(tmp_path) as run:
        for step in (1, 2):
            run.log({"kind": "step", "epoch": 0, "step": step, "terms": {"student.gen": 1.0 / step}})
        metrics = [{"name": FID, "value": 90.0}]
        run.log({"kind": "epoch", "epoch": 0, "step": 2, "sparsity": 0.0, "metrics": metrics})
        run.log(dense_result())
        save_grid(digits(4), run.samples / "dense.png")
        layer = {"name": "main.0.weight", "shape": [4, 2], "dense": 8, "nonzero": 8, "sparsity": 0.0}
        run.log({"kind": "layers", "step": 2, "layers": [{**layer, "asked": 0.0}]})
    source, page = read(write_report(tmp_path))
    assert "dcgan, dense" in page.text
    assert "tensor shape weights main.0.weight 4 × 2 8" in page.text
    assert "not zero" not in page.text
    assert "69.24 dense" in page.text
    assert "sparse" not in page.text
    assert "gen: generator" in page.text
    assert "var(--sparse)" not in source[source.index("<h1>") :]
    assert source.count("<img") == 1


def test_metrics_under_other_names_never_share_a_line(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log(dense_result(metrics=[{"name": OTHER, "value": 10.0}]))
        run.log(result(metrics=[{"name": FID, "value": 20.0}]))
    _, page = read(write_report(tmp_path))
    assert "×" not in page.text
    assert page.text.index("10.00") < page.text.index(OTHER) < page.text.index("20.00") < page.text.index(FID)


def test_a_value_that_is_not_finite_is_said(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log(result(metrics=[{"name": FID, "value": float("nan")}]))
    assert "not a number" in read(write_report(tmp_path))[1].text


def test_long_runs_show_some_epochs_with_the_first_and_the_last(tmp_path):
    run = RunFolder(tmp_path)
    for epoch in range(30):
        save_grid(digits(1), run.epoch_sample(epoch))
    shown = re.findall(r">epoch (\d+)<", read(write_report(tmp_path))[0])
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == ("0", "29")


def test_no_folder_no_report(tmp_path):
    with pytest.raises(UserError, match="Expected the folder of a run"):
        write_report(tmp_path / "missing")


def test_the_summary_compares_runs_with_the_dense_one(tmp_path):
    picture = save_grid(digits(2), tmp_path / "row.png")
    rows = [
        {**dense_result(), "label": "dense", "picture": picture},
        {
            **result(fid=138.48),
            "label": "75 % <i>",
            "picture": picture,
            "report": tmp_path / "a b" / "report.html",
        },
        {**result(metrics=[{"name": OTHER, "value": 5.0}]), "label": "elsewhere measured"},
    ]
    path = write_summary(tmp_path / "summary.html", "Runs & more", rows, notes=["Read me first."])
    source, page = read(path)
    assert "Runs & more" in page.text
    assert "Read me first." in page.text
    # 138.48 / 69.24 = 2
    assert "138.5 (× 2.00)" in page.text
    assert "25.15 % of 1,000,000 weights" in page.text
    assert "75 % <i>" in page.text
    assert source.count("<img") == 2
    links = [address for address in page.addresses if not address.startswith("data:")]
    assert links == ["a%20b/report.html"] * 2
    # The third row has no value in the columns of the others, and they have none in its column.
    header = re.findall(r"<th>(FID|KID)", source)
    assert header == ["FID", "KID", "FID"]
    last = [re.sub(r"<.*?>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", source, re.DOTALL)][
        -9:
    ]
    assert last[3:6] == ["–", "–", "5.00"]


def test_the_summary_compares_within_a_seed(tmp_path):
    rows = [
        {**dense_result(metrics=[{"name": FID, "value": 10.0}], seed=0), "label": "dense 0"},
        {**dense_result(metrics=[{"name": FID, "value": 20.0}], seed=1), "label": "dense 1"},
        {**result(metrics=[{"name": FID, "value": 30.0}], seed=0), "label": "pruned 0"},
        {**result(metrics=[{"name": FID, "value": 30.0}], seed=1), "label": "pruned 1"},
        {**result(metrics=[{"name": FID, "value": 30.0}], seed=2), "label": "pruned 2"},
    ]
    _, page = read(write_summary(tmp_path / "summary.html", "Seeds", rows))
    assert re.findall(r"× [\d.]+", page.text) == ["× 3.00", "× 1.50", "× 3.00"]


def test_charts_leave_colours_and_fonts_to_the_page():
    svg = line_chart(
        [Line("a $x_1$ < b", [0, 1], [1.0, 2.0], "dense"), Line("c", [0, 1], [2.0, 1.0])], "step"
    )
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "var(--dense)" in svg
    assert "var(--sparse)" in svg
    assert "font-family" not in svg
    assert not any(colour in svg for colour in COLOURS.values())
    assert "a $x_1$ &lt; b" in svg
    assert "width=" not in svg.split(">")[0]


def test_a_chart_survives_gaps_and_long_lines():
    values = [None if index % 7 == 0 else float(index) for index in range(5000)]
    svg = line_chart([Line("long", range(5000), values), Line("none", [0, 1], [None, None], "ink")], "step")
    assert "nan" not in svg.lower()
    assert len(svg) < 40_000


def test_panels_with_inputs_beside_them_are_drawn_at_the_scale_of_the_others(tmp_path):
    run = RunFolder(tmp_path / "run")
    pictures = digits(6)
    given = pictures[:3].unsqueeze(1)
    save_comparison(pictures, -pictures, run.samples, columns=2, given=given)
    run.log({"kind": "result", "method": "dense", "metrics": []})
    run.log({"kind": "result", "method": "m", "metrics": [], "columns": ["input", "a", "b"]})
    run.close()
    source = write_report(tmp_path / "run").read_text(encoding="utf-8")
    shares = [float(share) for share in re.findall(r'style="width: ([0-9.]+)%"', source)]
    widths = []
    for name in ("dense", "sparse", "residual", "residual_x10"):
        with Image.open(run.samples / f"{name}.png") as panel:
            widths.append(panel.width)
    assert shares == pytest.approx([100 * width / max(widths) for width in widths], abs=0.06)
    assert shares[0] == shares[1] == 100 > shares[2] == shares[3]
    assert "From left to right: input, a, b. Rows are the same inputs in each panel" in source
