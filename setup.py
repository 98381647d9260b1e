"""Installs the two packages of this repository; `data_scripts` are run from a clone."""

from pathlib import Path

from setuptools import find_packages, setup


setup(
    name="memreason-hf",
    version="0.1.0",
    description="Language models that think in depth and say what each step of an answer is, as Hugging Face parts",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["modeling_recurrent*", "memreason_hf*"]),
    package_data={
        "memreason_hf": [
            "recipes/*.yaml",
            "recipes/accelerate/*.yaml",
            "metrics/*/*",
            "hub/cards/templates/*.md",
            "annotation/prompts/*.txt",
            "evaluation/solutions/*.txt",
        ]
    },
    install_requires=[
        "torch>=2.6",
        # Capped where private members are used (tests/test_private_hooks.py): these releases were tried.
        "transformers>=5.17,<5.24",
        "accelerate>=1.10",
        "datasets>=4.0",
        "evaluate>=0.4.6",
        "peft>=0.21,<0.22",
        "safetensors>=0.6",
        "huggingface-hub>=1.0",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pydantic>=2.10",
        "rich>=14.0",
        "ruamel.yaml>=0.18",
        "tqdm>=4.66",
        "typing_extensions>=4.12",
    ],
    extras_require={
        "test": ["bm25s>=0.3,<0.4", "pytest>=8.0", "pytest-randomly>=3.15", "pytest-xdist>=3.6", "ruff>=0.14"],
        # The page of `memreason demo`.
        "demo": ["gradio>=6.31,<7"],
        # The server of `memreason serve`.
        "serve": ["fastapi>=0.115", "uvicorn>=0.34", "prometheus-client>=0.21"],
        # Search in a corpus (memreason annotate) and for similar demonstrations: by BM25, or by sentence-transformers.
        "retrieval": ["bm25s>=0.3,<0.4", "sentence-transformers>=5.0"],
        # What tests/integration tries where it is installed.
        "integrations": [
            "lm-eval>=0.4.13",
            "bitsandbytes>=0.50",
            "trl>=1.16",
            "playwright",
            "fastapi",
            "uvicorn",
            "prometheus-client",
            "openai",
        ],
    },
    entry_points={
        "console_scripts": ["memreason = memreason_hf.cli:main"],
        # vLLM calls it in every process, so that models load without `--trust-remote-code`.
        "vllm.general_plugins": ["recurrent_depth = modeling_recurrent.vllm_recurrent:register"],
    },
)
