"""Draw a study's front and ratio as PNG files, for a README, with a headless Chromium.

python docs/draw_figures.py studies/reference/fashion_mnist --chromium /usr/bin/chromium
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from plotly.graph_objects import Figure

from mvsearch.analysis.findings import Findings
from mvsearch.report import figures
from mvsearch.study.data import load_study
from mvsearch.study.folder import find_study

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def write_png(figure: Figure, target: Path, chromium: str = "/usr/bin/chromium") -> None:
    """Write a figure of a given width and height."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "figure.html"
        style = "<style>body { margin: 0; font-family: sans-serif }</style>"
        page.write_text(style + figure.to_html(include_plotlyjs=True, config={"displayModeBar": False}))
        options = [f"--user-data-dir={scratch}/profile", "--virtual-time-budget=5000", f"--screenshot={target}"]
        size = f"--window-size={int(figure.layout.width)},{int(figure.layout.height)}"
        subprocess.run([chromium, *FLAGS, *options, size, page.as_uri()], check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--names", nargs="+", default=["front", "ratio"])
    args = parser.parse_args()
    folder = find_study(args.study)
    drawn = figures(Findings(load_study(folder)))
    for name in args.names:
        figure = drawn[name]
        height = (figure.layout.height or 560) + 40
        figure.update_layout(width=1000, height=height, paper_bgcolor="white", plot_bgcolor="white", margin_t=90)
        figure.update_layout(title_y=0.975, title_yanchor="top", title_yref="container")
        target = folder.path / f"{name}.png"
        write_png(figure, target, args.chromium)
        print(f"Written: {target}")


if __name__ == "__main__":
    main()
