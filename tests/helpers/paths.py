"""Where the repository is, and beside it the real data that tests use where they are there."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
QUESTIONS = SHARED_DATA / "memory_reason"
PUBLISHED = SHARED_DATA / "published_outputs"
