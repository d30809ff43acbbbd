"""A page in headless Chromium: what it became, what its console said, and how it looks."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium, which is not installed here")


@dataclass(frozen=True)
class Opened:
    """The document after its scripts ran, and the lines of its console."""

    document: str
    console: tuple[str, ...]


def opened(page: Path, profile: Path, *, width: int = 1280, dark: bool = False) -> Opened:
    """Opens a file in a browser with a new profile."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
        f"--window-size={width},900", "--enable-logging=stderr", "--v=0",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return Opened(done.stdout, tuple(re.findall(r":CONSOLE:?\(?\d+\)?\] (.*)", done.stderr)))
