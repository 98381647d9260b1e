"""
Asking a language model: over HTTP or on this machine, many requests at once.

    chat = EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1", concurrency=32)
    for key, reply in ask_all(chat, {"a": [{"role": "user", "content": "Is the sky blue?"}]}, max_tokens=20):
        print(key, reply.text if isinstance(reply, ChatReply) else reply.reason)
"""

from memreason_hf.chat.concurrent import ask_all, in_order_of_completion
from memreason_hf.chat.endpoint import EndpointChat
from memreason_hf.chat.local import LocalChat
from memreason_hf.chat.replies import ChatError, ChatReply


__all__ = ["ChatError", "ChatReply", "EndpointChat", "LocalChat", "ask_all", "in_order_of_completion"]
