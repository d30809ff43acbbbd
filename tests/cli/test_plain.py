"""What terminals obey is never printed: of names and messages nothing that is not printable leaves as it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.cli import show
from quantgolf.cli.plain import plain
from quantgolf.cli.stopping import line_of
from quantgolf.errors import QuantGolfError

ANY = st.text(st.characters(exclude_categories=[]))  # lone surrogates included
HOSTILE = "a\x1b]0;title\x07b\x9b31m\u202ec\ud800d\r\x7f"
SHOWN = r"a\x1b]0;title\x07b\x9b31m\u202ec\ud800d\r\x7f"


@given(ANY)
def test_all_text_becomes_printable_and_keeps_what_was(text: str) -> None:
    found = plain(text)
    assert found.isprintable() and found.encode().decode() == found
    assert found == "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    lines = (line.split("\t") for line in text.split("\n"))
    assert plain(text, breaks=True) == "\n".join("\t".join(map(plain, parts)) for parts in lines)


def test_what_is_printable_stays() -> None:
    for text in ("", "layers.0.weight", "naïve ‖A-B‖ 重み 🏌", r"C:\x1b", 'it\'s "so"'):
        assert plain(text) == text


@given(ANY)
def test_errors_are_one_printable_line(text: str) -> None:
    assert line_of(QuantGolfError(text)).isprintable()


def test_console_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    console = show.console(False)
    console.print(f"{HOSTILE}\nnext", soft_wrap=True)
    console.print(show.table(HOSTILE, ("name", HOSTILE), [(HOSTILE, f"two\n{HOSTILE}")], words=2))
    show.console(True).print(HOSTILE)
    out, err = capsys.readouterr()
    assert out.startswith(f"{SHOWN}\nnext\n") and out.count(SHOWN) == 5 and rf"two\n{SHOWN}" in out
    assert err == f"{SHOWN}\n"
    assert all(line.isprintable() for line in (out + err).split("\n"))
    show.print_json({HOSTILE: [HOSTILE]})
    out, _ = capsys.readouterr()
    assert out.isascii() and all(line.isprintable() for line in out.split("\n"))
    assert json.loads(out) == {HOSTILE: [HOSTILE]}


def test_headings_of_two_lines_are_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show.console(False).print(show.table(None, ("method", "file\nbytes"), [("slope", "1,049,396")]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["method", "bytes"] in lines and ["file"] in lines


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with show.bars() as report:
        report(f"[red]{HOSTILE[:8]}", 1, 2)
        report(f"[red]{HOSTILE[:8]}", 2, 2)
    _, err = capsys.readouterr()
    assert r"[red]a\x1b]0;tit" in err
