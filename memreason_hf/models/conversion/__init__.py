"""Pretrained decoders become recurrent, and recurrent ones plain decoders again."""
