"""Processes that have the libraries of this environment, but not this package."""

import os
import subprocess
import sys
from pathlib import Path


def library_links(folder):
    """Makes a folder with links to every library on the path of this process, except this package; returns it."""
    folder.mkdir()
    for place in sys.path:
        if not place.endswith(("site-packages", "dist-packages")):
            continue
        for entry in Path(place).iterdir():
            ours = entry.name.startswith(("memreason", "modeling_recurrent", "__editable__"))
            if not ours and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


def run_without_the_package(code, folder, libraries, **environment):
    """Runs Python code in a folder; `libraries` is from `library_links`. -S leaves out what installs this package."""
    environment = {**os.environ, "PYTHONPATH": str(libraries), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
