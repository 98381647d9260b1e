"""The paths of the repository and of the real data next to it, which tests use if they exist."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
QUESTIONS = SHARED_DATA / "memory_reason"
PUBLISHED = SHARED_DATA / "published_outputs"
