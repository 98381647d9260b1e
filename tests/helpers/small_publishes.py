"""Publishing in a child process, which may be killed."""

import os
import sys

from huggingface_hub import constants, hf_api

from memreason_hf.commands import publish


def publish_as_client(url, token, folder, name):
    """Runs `memreason publish` for the Hub at an address: the library has read its environment before."""
    constants.ENDPOINT = hf_api.api.endpoint = url
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    os.environ["HF_TOKEN"] = token
    sys.exit(publish.main([folder, name, "--no_progress"]))
