"""Takes pictures of a report for the docs: light, dark and at the size of a phone.

  python scripts/screenshots.py runs/mine docs/images

Writes report_light.png, report_dark.png, report_tree.png, report_tree_dark.png and
report_phone.png. Needs chromium on PATH, and playwright from the `test` extra.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "tests")]

from browser import chromium, open_report  # noqa: E402

from nanoevolve_jax.errors import must  # noqa: E402
from nanoevolve_jax.reporting.page import write_report  # noqa: E402

LIMIT = 300_000  # bytes per picture
DESK, PHONE = (1280, 900), (360, 740)
# By name: size of the window, whether it is dark, the section at its upper edge.
PICTURES = {
    "report_light": (DESK, False, None),
    "report_dark": (DESK, True, "policy"),
    "report_tree": (DESK, False, "tree"),
    "report_tree_dark": (DESK, True, "tree"),
    "report_phone": (PHONE, False, None),
}


def main(workdir: str, out: str) -> None:
    """Writes the report of a run folder and takes all pictures of it."""
    report = write_report(Path(workdir)).resolve()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, ((width, height), dark, section) in PICTURES.items():
            page, complaints, _ = open_report(
                browser, report, width=width, height=height, dark=dark
            )
            if complaints:
                sys.exit(f"{report}: {complaints[0]}")
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            if section:
                page.evaluate(
                    "(name) => document.getElementById(name).scrollIntoView({behavior: 'instant'})",
                    section,
                )
            page.wait_for_timeout(300)
            path = folder / f"{name}.png"
            page.screenshot(path=path)
            page.close()
            if path.stat().st_size > LIMIT:
                sys.exit(must(str(path), f"have at most {LIMIT:,} bytes", path.stat().st_size))
            print(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
