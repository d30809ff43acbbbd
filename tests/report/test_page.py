"""The page holds every point, asks nothing of a network, runs nobody's script, and a browser has nothing to say."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from browser import needs_browser, opened

from quantgolf.report.page import page, shared_options
from quantgolf.report.results import Results, panels_of
from quantgolf.sweep.point import FrontierPoint

Make = Callable[..., FrontierPoint]
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    """</script></style><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'">{{7*7}}"""
)


class Reader(HTMLParser):
    """Elements with their attributes, and the text of a page; refuses tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def made(points: list[FrontierPoint], notes: tuple[str, ...] = (), sources: tuple[str, ...] = ("sweep.jsonl",)) -> str:
    return page(Results(tuple(points), notes), panels_of(points), sources).decode()


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_every_point_is_there_with_its_numbers(sweep: list[FrontierPoint]) -> None:
    text = made(sweep, notes=("sweep.jsonl line 9 is left out: half written",))
    reader = read(text)
    for point in sweep:
        if point.status == "done":
            assert f"{point.bytes:,}" in reader.text and f"of {point.limit:,}" in reader.text
            assert point.kl is not None and f"{point.kl.value:.4f}" in reader.text
    assert "no such width fits" in reader.text and "line 9 is left out" in reader.text and "sweep.jsonl" in reader.text
    assert "Points on the frontier of KL: slope 4 of 4." in reader.text
    assert "2026-11-28" in reader.text and "torch 2.13.0" in reader.text and "a machine" in reader.text
    assert sum(tag == "tr" for tag, _ in reader.elements) == 1 + 8 + 1 + 1
    assert reader.text.count("against slope") == 4 and "8,000 bytes" in reader.text
    assert len([tag for tag, _ in reader.elements if tag == "figure"]) == 4


def test_columns_that_no_point_fills_are_left_out(make: Make) -> None:
    assert "after\nxz" not in read(made([make(), make("gptq")])).text
    assert "after\nxz" in read(made([make(), make("gptq", xz_bytes=700_000)])).text


def test_nothing_is_asked_of_a_network(sweep: list[FrontierPoint]) -> None:
    text = made(sweep)
    reader = read(text)
    assert "http://" not in text and "https://" not in text and "//cdn" not in text and "@import" not in text
    for tag, attributes in reader.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert not attributes.get("src") and not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    (policy,) = (
        a["content"] for tag, a in reader.elements if tag == "meta" and "Content-Security-Policy" in a.values()
    )
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def hostile(make: Make, fail: Make) -> str:
    points = [
        make(HOSTILE, model=HOSTILE, options={HOSTILE: HOSTILE}, machine=HOSTILE, date=HOSTILE, kinds={HOSTILE: 5},
             versions={HOSTILE: HOSTILE}, text={"fingerprint": HOSTILE, HOSTILE: HOSTILE}),
        fail(HOSTILE, error=HOSTILE, model=HOSTILE, text={"fingerprint": HOSTILE}, options={"a": "\x00\ud800"}),
        make("模型 \x07", model="b", fingerprint="other"),
    ]  # fmt: skip
    return made(points, notes=(HOSTILE,), sources=(HOSTILE,))


def test_hostile_names_stay_text(make: Make, fail: Make) -> None:
    reader = read(hostile(make, fail))
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in reader.elements} and "{{7*7}}" in reader.text
    assert "模型" in reader.text and "\x07" not in reader.text


def test_the_same_results_give_the_same_page(sweep: list[FrontierPoint]) -> None:
    assert made(sweep[:2]) == made(sweep[:2])


def test_methods_look_alike_on_the_whole_page(comparison: list[FrontierPoint]) -> None:
    kept = ("slope", "other 9 4-bit")
    some = [p for p in comparison if p.model == "demo" or (p.model == "golf" and p.method in kept)]
    text = made(some)
    for method in ("slope", "other 9 4-bit"):
        colours = set(re.findall(rf'style="fill: (#[0-9a-f]+)"/></svg>{method}[<\n]', text))
        assert len(colours) == 1, method
    assert text.count("<nav") == 1


def test_options_that_all_share_are_said_once(make: Make) -> None:
    points = [make(options={"a": 1, "b": [2]}), make("gptq", options={"a": 2, "b": [2]})]
    assert shared_options(points) == {"b": [2]} and shared_options(points[:1]) == {}
    text = read(made(points)).text
    assert "Of all of them: b=[2]." in text and "a=1" in text


@needs_browser
def test_a_browser_opens_it_without_a_word(sweep: list[FrontierPoint], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(made(sweep), encoding="utf-8")
    found = opened(file, tmp_path / "profile", width=400, dark=True)
    assert found.console == ()
    # Our script ran: hover texts are where it looks for them, and pictures can be reached by the keyboard.
    assert found.document.count("data-tip=") > 50 and found.document.count('tabindex="0"') >= 6


@needs_browser
def test_a_browser_runs_no_script_of_a_results_file(make: Make, fail: Make, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(hostile(make, fail), encoding="utf-8")
    found = opened(file, tmp_path / "profile")
    assert found.console == () and "<title>owned" not in found.document and "data-tip=" in found.document


@needs_browser
def test_sorting_and_hovering(sweep: list[FrontierPoint], tmp_path: Path) -> None:
    clicks = """
    const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
    const column = heads.findIndex((head) => head.textContent.startsWith("KL, bits"));
    const seen = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
    const rising = (v) => v.every((x, i) => !i || v[i - 1] <= x);
    heads[column].firstElementChild.click();
    const up = rising(seen()) && heads[column].getAttribute("aria-sort") === "ascending";
    heads[column].firstElementChild.click();
    const down = rising(seen().reverse()) && heads[column].getAttribute("aria-sort") === "descending";
    const svg = document.querySelector("figure svg"), tip = document.getElementById("tip");
    svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    const shown = !tip.hidden && tip.textContent.includes("bits per parameter");
    svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
    document.body.dataset.checked = [up, down, shown, tip.hidden].join();
    """
    text = made(sweep)
    policy = re.search(r"script-src '[^']*'", text)
    assert policy
    text = text.replace(policy[0], "script-src 'unsafe-inline'").replace("</body>", f"<script>{clicks}</script></body>")
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    found = opened(file, tmp_path / "profile")
    assert found.console == () and 'data-checked="true,true,true,true"' in found.document


@needs_browser
def test_the_check_hears_a_console_that_complains(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(
        made([make()]).replace("</body>", "<script>console.error('heard')</script></body>"), encoding="utf-8"
    )
    assert any("Content Security Policy" in line for line in opened(file, tmp_path / "profile").console)
