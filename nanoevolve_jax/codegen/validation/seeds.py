"""The built-in functions of the slots as source: where evolution starts, what costs are held to."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "seeds"


def seed_source(slot: str) -> str:
    """The source of the built-in function of a slot, as it is written."""
    return (FOLDER / f"{slot}.py").read_text(encoding="utf-8")
