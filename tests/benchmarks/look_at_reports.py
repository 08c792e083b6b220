"""Pages to look at, and pictures of them: every kind of report, wide and narrow, light and dark.

    python tests/benchmarks/look_at_reports.py FOLDER [CHROMIUM]

writes a full report, a failed one, a build's short one and a comparison to FOLDER, made from random answers; with the
path of a Chromium also a PNG of each. A narrow window is a frame of 390 pixels, as Chromium's own have a least width.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "validation"))

from rich_report import bare_report, rich_report  # noqa: E402

from edgeforge.validation.comparing import compare_reports  # noqa: E402
from edgeforge.validation.page import render_comparison_page, render_page  # noqa: E402

QUIET = (
    "--headless",
    "--no-sandbox",  # it would not start as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SCHEMES = {"light": 1, "dark": 0}  # Blink's mojom::PreferredColorScheme
FRAME = '<body style="margin:0"><iframe src="{page}" style="border:0;width:390px;height:{height}px"></iframe>'
HEIGHT = 9000


def main(folder: Path, chromium: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    full, failed = rich_report(loss=0.005), rich_report(seed=2, loss=0.06, noise=0.5)
    pages = {
        "full": render_page(full),
        "failed": render_page(failed),
        "short": render_page(bare_report()),
        "comparison": render_comparison_page(compare_reports(full, failed, ("full", "failed"))),
    }
    for name, text in pages.items():
        page = folder / f"{name}.html"
        page.write_text(text, encoding="utf-8")
        print(page)
        if chromium is not None:
            for scheme in SCHEMES:
                shoot(chromium, page, folder / f"{name}-wide-{scheme}.png", scheme, 1280)
                frame = folder / f"{name}-narrow.html"
                frame.write_text(FRAME.format(page=page.name, height=HEIGHT), encoding="utf-8")
                shoot(chromium, frame, folder / f"{name}-narrow-{scheme}.png", scheme, 500)
                frame.unlink()


def shoot(chromium: str, page: Path, picture: Path, scheme: str, width: int) -> None:
    """One PNG of the page as far as HEIGHT pixels down."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{HEIGHT}"]
        command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", f"--screenshot={picture}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
