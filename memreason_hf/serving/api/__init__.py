"""
An HTTP server with the endpoints of OpenAI's API, over the decode loop that is batched by depth.

`app`, `connections`, `metrics` and `server` need the libraries of `pip install "memreason-hf[serve]"`; the other files
do not.
"""
