"""
Time and memory of a conversion: a Llama of the size of TinyLlama (1.1 B parameters) with random weights, in shards.

    python tests/benchmarks/bench_conversion.py [--dtype float32] [--shard 1GB] [--folder /tmp/bench]

The source is made once in a folder (by default a temporary one), and converted in a process of its own by
`memreason convert`, which also loads the result again and compares it with the source. Linux only: the peak is that of
the kernel's account (VmHWM), which counts pages of mapped files.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, resident_memory
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.models.conversion.record import read_record


SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def make_source(folder, dtype, shard):
    """Saves the source. In a process of its own, whose memory is not that of the conversion."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(folder, max_shard_size=shard)


def convert(source, out, layers):
    """Converts, and prints seconds, seconds of both cores together, and the peak of resident memory in GiB."""
    from memreason_hf.cli import main

    start = time.perf_counter()
    code = main(["convert", str(source), str(out), *layers])
    busy = time.process_time()
    print(f"RESULT {time.perf_counter() - start:.1f} {busy:.1f} {resident_memory('VmHWM') / 1024:.2f}")
    sys.exit(code)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the source")
    parser.add_argument("--shard", default="1GB", help="largest shard of the source (default: 1GB)")
    parser.add_argument("--folder", help="where source and result are written (default: a temporary folder)")
    parser.add_argument("--layers", nargs="*", default=["--prelude", "4", "--loop", "8", "--coda", "4"])
    parser.add_argument("--step", choices=["make", "convert"], help=argparse.SUPPRESS)
    args, _ = parser.parse_known_args()
    if args.step == "make":
        return make_source(args.folder, args.dtype, args.shard)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        source, out = folder / f"source_{args.dtype}", folder / "out"
        if not (source / "config.json").is_file():
            command = [sys.executable, __file__, "--step", "make", "--folder", str(source)]
            subprocess.run([*command, "--dtype", args.dtype, "--shard", args.shard], check=True)
        for layers in (args.layers, []):
            shutil.rmtree(out, ignore_errors=True)
            code = f"import bench_conversion as b; b.convert({str(source)!r}, {str(out)!r}, {layers!r})"
            command = [sys.executable, "-c", code]
            printed = subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True)
            _, seconds, busy, peak = printed.stdout.strip().splitlines()[-1].split()
            record = read_record(out)
            shards = len(list(source.glob("*.safetensors")))
            print(machine())
            print(
                f"{record['source']['num_parameters']:,} parameters in {args.dtype}, {shards} shards, "
                f"{' '.join(layers) or 'all layers kept'}: {seconds} s ({busy} s of processor time), "
                f"peak {peak} GiB, differences "
                f"{list(record['exactness']['differences'].values())}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
